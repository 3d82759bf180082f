"""Tiny multimodal base models of the real architectures: only their language model is trained."""

import ast
import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from learn.families import some_rows
from learn.tasks import CPU, Task, a_task
from learn.training import ALL_TAGS, run_command
from peft import AutoPeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForMultimodalLM
from tunemill_api.training import Adapter
from tunemill_dev.tiny import rows
from tunemill_dev.tiny.cached import cached_base
from tunemill_trainer.learn import language_part, loss, models, passes
from tunemill_trainer.learn.adapter import adapter_config, save_trained
from tunemill_trainer.prepared import BaseModel
from tunemill_trainer.release import merged

VLLM = Path(__file__).parents[2] / "build" / "vllm" / "vllm" / "model_executor" / "models"
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "max_position_embeddings": 512,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
QWEN_LINEAR = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}


@dataclass(frozen=True)
class Family:
    """A multimodal architecture.

    Attributes:
        kind: its `model_type`.
        text: the settings of its language model, in addition to `TEXT`.
        vision: those of its vision tower.
        vllm: the module of vLLM that serves it, and its class.
    """

    kind: str
    text: dict[str, Any]
    vision: dict[str, Any]
    vllm: tuple[str, str]


FAMILIES = {
    "Gemma 3": Family("gemma3", {"sliding_window": 8}, VISION, ("gemma3_mm", "Gemma3ForConditionalGeneration")),
    "Gemma 4": Family(
        "gemma4",
        {"sliding_window": 8, "vocab_size_per_layer_input": 1200, "hidden_size_per_layer_input": 8},
        VISION,
        ("gemma4_mm", "Gemma4ForConditionalGeneration"),
    ),
    "Llama 4": Family(
        "llama4",
        {"intermediate_size_mlp": 48, "num_local_experts": 2},
        VISION,
        ("mllama4", "Llama4ForConditionalGeneration"),
    ),
    "Mistral Small 3.1": Family(
        "mistral3",
        {"model_type": "mistral"},
        VISION | {"model_type": "pixtral"},
        ("mistral3", "Mistral3ForConditionalGeneration"),
    ),
    "Ministral 3": Family(
        "mistral3",
        {"model_type": "ministral3"},
        VISION | {"model_type": "pixtral"},
        ("mistral3", "Mistral3ForConditionalGeneration"),
    ),
    "Qwen3.5": Family("qwen3_5", QWEN_LINEAR, QWEN_VISION, ("qwen3_vl", "Qwen3VLForConditionalGeneration")),
    "Qwen2.5-VL": Family(
        "qwen2_5_vl",
        {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}},
        QWEN_VISION,
        ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    ),
    "Qwen3-VL": Family(
        "qwen3_vl",
        {},
        QWEN_VISION | {"deepstack_visual_indexes": [0]},
        ("qwen3_vl", "Qwen3VLForConditionalGeneration"),
    ),
}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def a_model(family: Family, vocabulary: int) -> Any:
    """A model of the architecture with random weights."""
    torch.manual_seed(0)
    text = TEXT | {"vocab_size": vocabulary} | family.text
    config = AutoConfig.for_model(family.kind, text_config=text, vision_config=family.vision)
    return AutoModelForMultimodalLM.from_config(config, dtype=torch.float32)


@pytest.fixture(scope="module")
def text_task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Requests and calls in the tokens of a small base model."""
    return a_task(cached_base("qwen3", steps=0), tmp_path_factory.mktemp("task"))


@pytest.fixture
def task(family: Family, text_task: Task, tmp_path: Path) -> Task:
    """The same requests for a multimodal base."""
    base = tmp_path / "base"
    model = a_model(family, text_task.tokens.vocabulary)
    # Rows of added tokens are tested with each method and size of vocabulary elsewhere.
    model.save_pretrained(base)
    shutil.copytree(text_task.tokenizer, base, dirs_exist_ok=True)
    (base / "preprocessor_config.json").write_text("{}")
    return replace(text_task, base=base, tokens=replace(text_task.tokens, added=()))


def difference(task: Task, one: Any, other: Any) -> float:
    """The largest difference of two models' logits."""
    ids = torch.tensor([task.pairs[0][0]])
    with torch.no_grad():
        return float((one.eval()(input_ids=ids).logits - other.eval()(input_ids=ids).logits).abs().max())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The saved tensors of a model."""
    return {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}


def is_other(name: str) -> bool:
    """Whether a tensor belongs to neither the language model nor its head. Some are saved under shorter names."""
    return re.search("vision|visual|projector", name) is not None


@each_family
def test_an_adapter_of_the_language_model_is_trained_saved_and_merged(
    family: Family, task: Task, tmp_path: Path
) -> None:
    """The adapter loads with AutoPeftModel; the merged model has the class and the other parts of its base model."""
    model = task.model()
    kind = type(model)
    assert kind.__name__.endswith("ForConditionalGeneration")
    result = task.train(tmp_path / "run", Adapter(), model, count=16, maxSteps=2, learningRate="1e-2", warmupRatio="0")
    save_trained(result.model, BaseModel(str(task.base), "main"), task.tokenizer, tmp_path / "out", torch.float32)
    trained = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert trained
    assert any(tensor.any() for name, tensor in trained.items() if "lora_B" in name), "nothing was learnt"
    for name in trained:
        assert re.match(
            r"language_model\.model\.(layers\.\d|per_layer_model_projection\.)", served_name(family, name)
        ), name

    loaded = AutoPeftModel.from_pretrained(tmp_path / "out")
    assert type(loaded.get_base_model()) is kind
    assert difference(task, result.model, loaded) <= 1e-5
    ours = models.ModelLoader(task.base, CPU, torch.float32).tuned(tmp_path / "out", task.tokens)
    assert difference(task, result.model, ours) <= 1e-5

    merged.save_whole(merged.merge(ours), task.base, task.tokenizer, tmp_path / "whole")
    whole = models.load_base(tmp_path / "whole", CPU, torch.float32)
    assert type(whole) is kind
    assert difference(task, result.model, whole) <= 1e-4
    assert (tmp_path / "whole" / "preprocessor_config.json").is_file()
    before, after = weights(task.base), weights(tmp_path / "whole")
    assert before.keys() == after.keys()
    others = [name for name in before if is_other(name)]
    assert others
    assert all(torch.equal(before[name], after[name]) for name in others)


def served_name(family: Family, tensor: str) -> str:
    """Return vLLM's name of a tensor of an adapter, by the prefixes in its source."""
    name = tensor.removeprefix("base_model.model.")
    module, class_name = family.vllm
    path = VLLM / f"{module}.py"
    if not path.exists():
        pytest.skip("vLLM is not installed in build/vllm")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    for statement in found.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "hf_to_vllm_mapper":
            arguments = {word.arg: word.value for word in statement.value.keywords}
            prefixes = ast.literal_eval(arguments["orig_to_new_prefix"])
            # vLLM applies every prefix in turn.
            for old, new in prefixes.items():
                if name.startswith(old):
                    name = name.replace(old, new, 1)
    return name


@pytest.mark.parametrize("family", [FAMILIES["Gemma 3"], FAMILIES["Llama 4"]], ids=["tied head", "separate head"])
def test_full_fine_tuning_trains_the_language_model_only(family: Family, task: Task, tmp_path: Path) -> None:
    """Other parts are neither trained nor in the optimizer state."""
    model = task.model()
    language_part.freeze_other_parts(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in dict(model.named_parameters()) if is_other(name)}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    method = Adapter(method="Full")
    result = task.train(tmp_path / "run", method, model, count=16, maxSteps=1, learningRate="1e-3", warmupRatio="0")
    after = dict(result.model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert any(not torch.equal(before[name], after[name]) for name in before)


@each_family
def test_text_only_input_gives_the_results_of_the_language_model(family: Family) -> None:
    """The wrapper's positions and masks change nothing, and the losses for CPU and GPU are equal."""
    model = a_model(family, 128).eval()
    batch = passes.make(some_rows((12, 9)), torch.device("cpu"), padded=True)
    whole, tiled = loss.score_at_once(model, batch), loss.score_in_tiles(model, batch)
    assert float(whole.loss.detach()) == pytest.approx(float(tiled.loss.detach()), rel=1e-5)
    language = model.get_submodule(language_part.prefix_of(model)[:-1])
    with torch.no_grad():
        one, other = (part(**batch.inputs).last_hidden_state for part in (language_part.without_head(model), language))
    # What is computed at padding is not used.
    used = batch.inputs["attention_mask"].bool()
    assert float((one[used] - other[used]).abs().max()) <= 1e-5


@pytest.mark.parametrize(
    "method",
    [
        {"method": "LoRA", "lora": {"targetModules": ["q_proj", "v_proj"]}},
        {"method": "IA3"},
        {"method": "IA3", "ia3": {"targetModules": ["all-linear"]}},
        {"method": "AdaLoRA"},
    ],
    ids=str,
)
def test_modules_of_the_same_name_in_other_parts_get_no_adapter(method: dict[str, object], text_task: Task) -> None:
    """The vision tower of Mistral Small 3.1 has a q_proj, too."""
    from peft import get_peft_model

    model = a_model(FAMILIES["Mistral Small 3.1"], 128)
    tokens = replace(text_task.tokens, added=())
    tuned = get_peft_model(model, adapter_config(Adapter.model_validate(method), model, tokens, 10))
    trained = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("language_model.layers." in name for name in trained)


def test_a_multimodal_base_model_runs_through_all_stages(tmp_path: Path) -> None:
    """The adapter and the merged model can be loaded by users and servers; the learning rate is recorded."""
    text_base = cached_base("gemma3", ALL_TAGS, steps=0)
    model = a_model(FAMILIES["Gemma 3"], AutoConfig.from_pretrained(text_base).vocab_size)
    model.save_pretrained(tmp_path / "base")
    for file in text_base.iterdir():
        if file.name.startswith(("tokenizer", "chat_template", "special_tokens")):
            shutil.copy(file, tmp_path / "base")
    (tmp_path / "base" / "preprocessor_config.json").write_text("{}")
    (tmp_path / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(60, seed=5, offered=2)))
    spec = {
        "baseModel": {"id": "./base"},
        "dataset": {"uri": "./calls.jsonl"},
        "training": {"maxSteps": 2, "batchSize": 8, "maxLength": 512},
        "evaluation": {"maxNewTokens": 8, "maxRows": 4, "gates": []},
        "publish": {"repository": "./result", "artifacts": ["Adapter", "Merged"]},
        "compute": {"gpus": 0},
    }
    manifest = {"apiVersion": "tunemill.dev/v1alpha1", "kind": "FunctionCallFineTune", "metadata": {"name": "t"}}
    (tmp_path / "finetune.yaml").write_text(yaml.safe_dump({**manifest, "spec": spec}))
    ended = run_command(["run", "finetune.yaml", "--work", "work"], {}, tmp_path)
    assert ended.code == 0, ended.log
    release, whole = tmp_path / "result" / "main", tmp_path / "result-merged" / "main"
    card = (release / "README.md").read_text()
    assert "from peft import AutoPeftModel\n" in card
    assert "| Learning rate | 2e-4 (Auto), Cosine, warmup ratio 0.1 |" in card
    assert "AutoModelForMultimodalLM" in (whole / "README.md").read_text()
    kind = type(model)
    assert type(AutoPeftModel.from_pretrained(release).get_base_model()) is kind
    assert type(AutoModelForMultimodalLM.from_pretrained(whole)) is kind
    assert (whole / "preprocessor_config.json").is_file()
