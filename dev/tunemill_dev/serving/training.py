"""Makes the small base model of a family, and trains an adapter until it repeats some tool calls."""

import hashlib
import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tunemill_api.data import TokenizerMode
from tunemill_api.training import Adapter, Lora
from tunemill_trainer.bases import catalogue
from tunemill_trainer.chat import templates, tokenizer
from tunemill_trainer.data.dataset import Features
from tunemill_trainer.data.rows import Call, Message, Role, Row, Source, Tool
from tunemill_trainer.prepared import Tokens

from tunemill_dev.cluster.home import home, locked
from tunemill_dev.serving.families import WIDTH, Small, small

NO_TOKENS = Tokens("Text", (), (), 0, 0)
LAYERS, HEADS, VOCABULARY = 2, 4, 1500
STEPS, LEARNING_RATE, RANK = 400, 6e-3, 64
"""The most steps. Training ends when each token of the replies has a probability of
90 %, so that greedy decoding repeats them."""
_ENOUGH = 0.1
_MAMBA_STEP = -3.0
_MADE_BY = ("torch", "transformers", "tokenizers", "peft", "trl")


def _tool(name: str, description: str, **parameters: str) -> Tool:
    properties: Any = {key: {"type": kind} for key, kind in parameters.items()}
    return Tool(name, description, {"type": "object", "properties": properties, "required": list(parameters)})


WEATHER = _tool("get_weather", "Weather of a city", city="string")
ROOM = _tool("book_room", "Book a room", room="string", hour="integer")
SYSTEM = Message(Role.SYSTEM, "You help the office.")


def rows(of: Small) -> list[Row]:
    """Return the rows that the adapter learns by heart.

    They have one call, parallel calls, arguments with quotation marks and other alphabets, an answer after a result,
    and several turns with calls.
    """
    tools = (WEATHER, ROOM if of.numbers else _tool("book_room", ROOM.description, room="string"))
    hour: dict[str, Any] = {"hour": 9} if of.numbers else {}

    def says(text: str, *calls: Call, thought: str = "") -> Message:
        return Message(Role.ASSISTANT, text, reasoning=thought if of.reasons else "", calls=calls)

    weather = says("", Call("get_weather", {"city": "Rome"}), thought="The city is Rome.")
    both = (Call("get_weather", {"city": "Oslo"}), Call("get_weather", {"city": "Lima"}))
    brief = "A room and an hour." if of.always_reasons else ""
    conversations = [
        [Message(Role.USER, "Weather in Rome?"), weather],
        [
            Message(Role.USER, "Compare Oslo and Lima for me, please, both of them."),
            says("", *(both if of.parallel else both[:1]), thought="Two cities."),
        ],
        [
            Message(Role.USER, "Book the room Blue at nine."),
            says("", Call("book_room", {"room": "Blue", **hour}), thought=brief),
        ],
        [
            Message(Role.USER, "Tell me if it is cold on the new island Österø today, if you can."),
            says("", Call("get_weather", {"city": 'the "new" Österø'}), thought="A quoted city."),
        ],
        [
            Message(Role.USER, "Weather in Rome?"),
            weather,
            Message(Role.TOOL, "sunny", name="get_weather"),
            says("It is sunny.", thought="The result is sunny."),
            Message(Role.USER, "And a room?"),
            says("", Call("book_room", {"room": "Green", **hour}), thought="A room."),
        ],
    ]
    return [Row((SYSTEM, *turns), tools, Source("rows", at + 1)) for at, turns in enumerate(conversations)]


@dataclass(frozen=True)
class Trained:
    """A trained adapter with its base model, as prepare and train leave them.

    Attributes:
        name: the family.
        folder: has `base`, `adapter` and `merged`.
    """

    name: str
    folder: Path

    @property
    def base(self) -> Path:
        """The base model."""
        return self.folder / "base"

    @property
    def adapter(self) -> Path:
        """The adapter with tokenizer, chat template and generation_config.json."""
        return self.folder / "adapter"

    @property
    def merged(self) -> Path:
        """The merged model with the same."""
        return self.folder / "merged"

    @cached_property
    def family(self) -> catalogue.Family:
        """The entry of the catalogue."""
        return next(family for family in catalogue.families() if family.name == self.name)

    @cached_property
    def small(self) -> Small:
        """What the base model was made of."""
        return small(self.name)

    @cached_property
    def choice(self) -> templates.Choice:
        """The chat template that prepare chooses for the rows."""
        return _choose(tokenizer.load(self.base), self.family, self.small)

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """The stop tokens."""
        config = json.loads((self.adapter / "generation_config.json").read_text(encoding="utf-8"))
        return tuple(config["eos_token_id"])

    @property
    def vocabulary(self) -> int:
        """The rows that the tokenizer needs."""
        return max(tokenizer.load(self.adapter).get_vocab().values()) + 1

    def texts(self, sequences: list[list[int]]) -> list[str]:
        """Return the texts of token ids, with special tokens."""
        return tokenizer.load(self.base).batch_decode(sequences, skip_special_tokens=False)


def trained(name: str) -> Trained:
    """Return the trained model of a family. The first call trains it, in some seconds."""
    folder = home() / "serving" / f"{name.lower().replace(' ', '-')}-{_key(name)}"
    with locked(folder.with_suffix(".lock")):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            _make(Trained(name, unfinished))
            _point_to(unfinished / "adapter", folder / "base")
            unfinished.rename(folder)
    return Trained(name, folder)


def _key(name: str) -> str:
    parts: tuple[Callable[..., object], ...] = (_make, _tokenizer, _model, _train)
    digest = hashlib.sha256("".join(map(inspect.getsource, parts)).encode())
    of = small(name)
    digest.update(repr((of, rows(of))).encode())
    digest.update(json.dumps([version(package) for package in _MADE_BY]).encode())
    return digest.hexdigest()[:12]


def _point_to(adapter: Path, base: Path) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"base_model_name_or_path": str(base)}), encoding="utf-8")


def _features(of: Small) -> Features:
    features = Features()
    for row in rows(of):
        features.see(row)
    return features


def _choose(loaded: Any, family: catalogue.Family, of: Small) -> templates.Choice:  # noqa: ANN401
    choice, _ = templates.choose_and_extend(
        loaded, TokenizerMode.TEXT, _features(of), (), None, TokenizerMode.TEXT, family.calls
    )
    return choice


def _make(made: Trained) -> None:
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    of = made.small
    template = _choose(_tokenizer(of, []), made.family, of).encoder.template
    texts = [template.conversation(row.messages, row.tools) for row in rows(of)]
    _tokenizer(of, texts).save_pretrained(made.base)
    model = _model(of, made.base)
    model.save_pretrained(made.base)
    loaded = tokenizer.load_base(made.base)
    choice = _choose(loaded, made.family, of)
    described = tokenizer.describe(
        loaded,
        tokenizer.Vocabulary(TokenizerMode.TEXT, ()),
        choice.ends_of_turns,
        made.base,
        choice.encoder.call_format,
    )
    encoded = choice.encoder.encode(rows(of))
    if problems := [one.problem for one in encoded if one.problem]:
        raise ValueError(f"{made.name}: the rows cannot be encoded: {problems[0].message}")
    tuned = _train(model, [(one.input_ids, one.labels(everything=False)) for row in encoded for one in row.examples])
    tuned.peft_config["default"].base_model_name_or_path = str(made.base)
    tuned.save_pretrained(made.adapter)
    tuned.merge_and_unload(safe_merge=True).save_pretrained(made.merged)
    loaded.chat_template = choice.encoder.template.source
    for folder in (made.adapter, made.merged):
        loaded.save_pretrained(folder)
        generation = _generation(described)
        (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")


def _generation(tokens: Tokens) -> dict[str, Any]:
    from tunemill_trainer.release.folder import generation_config

    return generation_config(tokens)


def _tokenizer(of: Small, texts: list[str]) -> Any:  # noqa: ANN401 - transformers ships no types
    """Make a tokenizer with long tokens for these texts, so that prompts are short and training is quick."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys(filter(None, (of.turns.pad, of.turns.bos, of.turns.eos, *of.turns.others))))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    names = {"eos_token": of.turns.eos, "pad_token": of.turns.pad}
    names |= {"bos_token": of.turns.bos} if of.turns.bos else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    fast.add_tokens([AddedToken(token, special=True, normalized=False) for token in of.turns.others])
    fast.add_tokens([AddedToken(token, special=False, normalized=False) for token in of.turns.tags])
    fast.chat_template = of.template
    return fast


def _model(of: Small, folder: Path) -> Any:  # noqa: ANN401
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    speaker = PreTrainedTokenizerFast.from_pretrained(folder)
    settings = {
        "vocab_size": len(speaker),
        "vocab_size_per_layer_input": len(speaker),  # Gemma 4
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "head_dim": WIDTH // HEADS,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "initializer_range": 0.08,
        "pad_token_id": speaker.pad_token_id,
        "eos_token_id": speaker.eos_token_id,
        "bos_token_id": speaker.bos_token_id,
    }
    config = AutoConfig.for_model(of.model_type, **(settings | dict(of.settings)))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        # With the initial scale, the logits of so narrow a model are too small for a token to have 90 %.
        model.get_output_embeddings().weight.mul_(2)
        for name, weight in model.named_parameters():
            if name.endswith("dt_bias"):
                # With the initial 1, the state of Mamba forgets a token after the next one.
                weight.fill_(_MAMBA_STEP)
    return model


def _train(model: Any, examples: list[tuple[list[int], list[int]]]) -> Any:  # noqa: ANN401
    """Train an adapter on all examples at once until it repeats them."""
    import torch
    from peft import get_peft_model
    from tunemill_trainer.learn.adapter import adapter_config

    lora = Lora(rank=RANK, alpha=RANK, dropout="0")
    config = adapter_config(Adapter(lora=lora), model, NO_TOKENS, STEPS)
    tuned = get_peft_model(model, config).train()
    length = max(len(ids) for ids, _ in examples)
    ids, labels, mask = (torch.full((len(examples), length), value) for value in (0, -100, 0))
    for at, (tokens, wanted) in enumerate(examples):
        ids[at, : len(tokens)] = torch.tensor(tokens)
        labels[at, : len(tokens)] = torch.tensor(wanted)
        mask[at, : len(tokens)] = 1
    optimizer = torch.optim.AdamW([each for each in tuned.parameters() if each.requires_grad], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 10)
    for _ in range(STEPS):
        logits = tuned(input_ids=ids, attention_mask=mask).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
        if losses.max() < _ENOUGH:
            break
        (losses.sum() / (labels != -100).sum()).backward()
        torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    else:
        raise ValueError(f"the adapter did not learn its rows in {STEPS} steps: a token's loss is {losses.max():.3f}")
    return tuned.eval()
