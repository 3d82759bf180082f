"""GGUF files in the real llama.cpp server: tokens, probabilities and calls."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from learn.llama_cpp import a_llama_server
from learn.runs import TrainedRun
from learn.test_serving import right_cases
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from tunemill_api.failures import Reason
from tunemill_api.publish import GgufQuantization
from tunemill_api.stage_report import Stage
from tunemill_dev.tiny.base import SPECIAL_TOKENS, TURN_TEMPLATE
from tunemill_trainer.errors import StageError
from tunemill_trainer.prepared import Tokens
from tunemill_trainer.release import gguf_file
from tunemill_trainer.release.gguf_vocabulary import _GPT_4O, _LLAMA3, _QWEN2, _TEKKEN
from tunemill_trainer.serving.client import Client

HOSTILE = (
    "Don't  tell Zoë's 12345 cats about   naïve café prices:\n\n\t$3.14 != 1e-7;  été 東京 привет, 'S we'LL\r\n"
    " ok/then/\n"
    ' <tool_call>{"name": "f"}</tool_call>  🦙🦙'
)
"""Contractions, digits, runs of spaces, several scripts, marks and tags: where tokenizers differ."""


def byte_level(expression: str, *, ignore_merges: bool = False) -> Tokenizer:
    """A byte-level BPE that splits by an expression; empty means the one of GPT-2, `digits` with single digits."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if expression in {"", "digits"}:
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
        if expression:
            steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    else:
        steps = [
            pre_tokenizers.Split(Regex(expression), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIAL_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([HOSTILE] * 3 + ["user\nmodel\n the of and to in"] * 3, trainer)
    return tokenizer


def sentencepiece(*, prefix: bool) -> Tokenizer:
    """A BPE as Transformers makes it of SentencePiece, with bytes for unknown characters."""
    replace = normalizers.Replace(" ", "▁")
    steps = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    words = Tokenizer(models.BPE())
    words.normalizer = steps
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False)
    words.train_from_iterator([HOSTILE[:60]] * 3 + ["user\nmodel\n the of and to in"] * 3, trainer)
    model = json.loads(words.to_str())["model"]
    pieces = [*SPECIAL_TOKENS, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: number for number, piece in enumerate(dict.fromkeys(pieces))},
            [tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = steps
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


TOKENIZERS = {
    "gpt-2": lambda: byte_level(""),
    "smollm": lambda: byte_level("digits"),
    "qwen2": lambda: byte_level(_QWEN2),
    "dbrx": lambda: byte_level(_LLAMA3),
    "llama-bpe": lambda: byte_level(_LLAMA3, ignore_merges=True),
    "tekken": lambda: byte_level(_TEKKEN, ignore_merges=True),
    "gpt-4o": lambda: byte_level(_GPT_4O),
    "gemma": lambda: sentencepiece(prefix=False),
    "mistral": lambda: sentencepiece(prefix=True),
}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama 3.1": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama with a linear scale": ("llama", {"rope_parameters": LINEAR_ROPE}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 16, "sliding_window": 8}),
    "gemma3": ("gemma3_text", {"query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 7}),
}


@dataclass(frozen=True)
class Written:
    """A model with random weights, its tokenizer, and the GGUF file of both."""

    model: Any
    tokenizer: Any
    folder: Path
    path: Path

    def prompt(self, text: str) -> list[int]:
        """The token ids of a request."""
        messages = [{"role": "user", "content": text}]
        ids: list[int] = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return ids


def saved(folder: Path, architecture: str, tokenizer: Tokenizer) -> tuple[Any, Any]:
    """Save a model with random weights and a tokenizer as publish does."""
    family, settings = ARCHITECTURES[architecture]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )
    fast.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<tool_call>", "</tool_call>")])
    fast.chat_template = TURN_TEMPLATE
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": len(fast) + 3,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "initializer_range": 0.3,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
        }
        | settings,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if name.endswith(("norm.weight", ".bias")):  # those of a new model are all one, or all zero
            weight.data += 0.2 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return model, fast


def written(
    folder: Path, architecture: str, tokenizer: Tokenizer, quantization: GgufQuantization = GgufQuantization.NONE
) -> Written:
    """Save a model and write it as GGUF."""
    model, fast = saved(folder, architecture, tokenizer)
    file, number_format = gguf_file.file_name("acme/tiny-GGUF", folder, quantization)
    result = Written(model, fast, folder, folder / file)
    stop = fast.convert_tokens_to_ids("<end_of_turn>")
    tokens = Tokens("Text", (), (stop, 1), 0, len(fast))
    gguf_file.write_gguf(folder, result.path, number_format=number_format, tokens=tokens, prompt=result.prompt("Hi"))
    gguf_file.check_gguf(result.path, folder)
    return result


def probable(model: Any, prompt: list[int]) -> dict[int, float]:
    """The most probable next tokens with their log-probabilities, as Transformers has them."""
    with torch.inference_mode():
        top = torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1], -1).topk(5)
    return dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def served_probable(url: str, prompt: list[int]) -> dict[int, float]:
    """The same as the llama.cpp server has them."""
    request = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": 8, "cache_prompt": False}
    reply = httpx2.post(f"{url}/completion", json=request, timeout=60).json()
    return {top["id"]: top["logprob"] for top in reply["completion_probabilities"][0]["top_logprobs"]}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_server_has_the_probabilities_of_transformers(architecture: str, tmp_path: Path):
    """For each architecture, also beyond the sliding window."""
    made = written(tmp_path, architecture, byte_level(_QWEN2))
    whole = made.prompt("The cats of Zoë in 東京, 12345 of them")
    with a_llama_server(made.path) as url:
        compared = 0
        for length in range(len(whole), 1, -1):
            here = probable(made.model, whole[:length])
            best = made.tokenizer.decode([next(iter(here))], skip_special_tokens=True)
            # The server keeps back a token that is a part of a character, and returns none that ends the reply.
            if not best or "\N{REPLACEMENT CHARACTER}" in best or compared == 4:
                continue
            compared += 1
            there = served_probable(url, whole[:length])
            assert here.keys() <= there.keys()
            for token, expected in here.items():
                # The server rounds to 16 bits in places, which makes up to 0.05; a wrong rotary embedding makes 0.4.
                assert there[token] == pytest.approx(expected, abs=0.15)
        assert compared == 4


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_server_tokenizes_like_transformers(name: str, tmp_path: Path):
    """A text in the chat template, for each kind of tokenizer, with exactly one BOS token."""
    made = written(tmp_path, "llama", TOKENIZERS[name]())
    with a_llama_server(made.path) as url:
        messages = {"messages": [{"role": "user", "content": HOSTILE}]}
        prompt = httpx2.post(f"{url}/apply-template", json=messages).json()["prompt"]
        request = {"content": prompt, "add_special": True, "parse_special": True}
        found = httpx2.post(f"{url}/tokenize", json=request).json()["tokens"]
    expected = made.prompt(HOSTILE)
    assert made.tokenizer.convert_ids_to_tokens(found) == made.tokenizer.convert_ids_to_tokens(expected)
    assert found == expected
    assert len(set(found)) > 30


def test_quantized_weights_are_close_to_the_original(tmp_path: Path):
    """The file has a third of the size, and the format in its name."""
    made = written(tmp_path, "llama", byte_level(_QWEN2), GgufQuantization.Q8_0)
    assert made.path.name == "tiny-Q8_0.gguf"
    assert made.path.stat().st_size < 0.4 * (tmp_path / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram"),
        ({"normalizer": {"type": "Lowercase"}}, "changes the text"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "neither SentencePiece nor byte-level"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated"}}, "neither"),
    ],
)
def test_an_unsupported_tokenizer_is_refused(changes: dict[str, Any], named: str, tmp_path: Path):
    """With its properties, before anything is written."""
    saved(tmp_path, "llama", byte_level(_QWEN2))
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(StageError, match=named) as refused:
        gguf_file.refuse_inconvertible(tmp_path, added_tokens=2)
    assert refused.value.reason is Reason.INVALID_SPEC
    assert "spec.publish.artifacts" in refused.value.failure.remedy


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gpt2"}, "gpt2, expected one of llama"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding window"),
        ({"model_type": "gemma2", "query_pre_attn_scalar": 144}, "scales queries by 144"),
    ],
)
def test_an_unsupported_model_is_refused(changes: dict[str, Any], named: str, tmp_path: Path):
    """By its configuration, before training."""
    saved(tmp_path, "llama", byte_level(_QWEN2))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(StageError, match=named):
        gguf_file.refuse_inconvertible(tmp_path, added_tokens=0)


def test_a_file_that_differs_from_the_model_is_not_published(tmp_path: Path):
    """One changed weight, another chat template, and a truncated file are detected."""
    made = written(tmp_path, "gemma2", byte_level(_QWEN2))
    right = made.path.read_bytes()
    tensor = GGUFReader(made.path).tensors[5]
    at = int(tensor.data_offset)
    damaged = right[:at] + np.float32(9).tobytes() + right[at + 4 :]
    for content, named in (
        (damaged, f"tensor {tensor.name} differs"),
        (right.replace(b"add_generation_prompt", b"add_generation_prompX", 1), "chat_template"),
        (right[: len(right) // 2], "cannot be read"),
    ):
        made.path.write_bytes(content)
        with pytest.raises(StageError, match=named) as failed:
            gguf_file.check_gguf(made.path, tmp_path)
        assert failed.value.reason is Reason.PROOF_FAILED


def test_a_trained_model_is_published_as_gguf_and_served_by_llama_cpp(extended_run: TrainedRun, tmp_path: Path):
    """An OpenAI client gets the calls of evaluate for the same prompts."""
    run = extended_run.changed(
        evaluation={"gates": [{"metric": "exact_match", "min": "0.2"}]},
        publish={"repository": "acme/local", "artifacts": ["Adapter", "GGUF"], "tag": "v1"},
    )
    assert run.stage(Stage.EVALUATE).code == 0
    ended = run.stage(Stage.PUBLISH)
    assert ended.code == 0, ended.log
    assert ended.report is not None
    assert ended.report.published is not None
    head = run.api.list_repo_commits("acme/local-GGUF")[0].commit_id
    assert ended.report.published.gguf == f"acme/local-GGUF@{head}"
    assert not run.api.repo_exists("acme/local-merged")
    files = set(run.api.list_repo_files("acme/local-GGUF", revision="v1"))
    assert {"local-F32.gguf", "README.md", "provenance.json", "tunemill.json"} <= files
    card = Path(run.api.hf_hub_download("acme/local-GGUF", "README.md", local_dir=tmp_path)).read_text()
    assert "llama-server --jinja -m local-F32.gguf" in card
    path = Path(run.api.hf_hub_download("acme/local-GGUF", "local-F32.gguf", local_dir=tmp_path))
    cases = right_cases(run, tmp_path)[:4]
    assert len(cases) >= 2
    with a_llama_server(path) as url:
        client = Client(f"{url}/v1", "local", retries=0)
        for case in cases:
            request = {
                "messages": [{"role": m.role.value, "content": m.content} for m in case.messages],
                "tools": [{"type": "function", "function": tool.to_json()} for tool in case.tools],
            }
            prompt = httpx2.post(f"{url}/apply-template", json=request).json()["prompt"]
            tokens = {"content": prompt, "add_special": True, "parse_special": True}
            assert httpx2.post(f"{url}/tokenize", json=tokens).json()["tokens"] == list(case.prompt_ids)
            assert client.ask(case.messages, case.tools, max_tokens=128).parsed.calls == case.gold.calls
    again = run.stage(Stage.PUBLISH)
    assert again.report is not None
    assert not again.report.executed
    run.api.delete_repo("acme/local-GGUF")
    remade = run.stage(Stage.PUBLISH)
    assert remade.report is not None
    assert remade.report.executed
    assert run.api.repo_exists("acme/local-GGUF")
