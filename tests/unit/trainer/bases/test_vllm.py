"""The rules about vLLM match its source, which `make test-unit` puts into build/vllm."""

import ast
import re
from functools import cache

import pytest
from trainer.bases.vllm_source import VLLM, models, tree_of
from tunemill_trainer.bases import catalogue
from tunemill_trainer.learn.devices import OUT_OF_RANGE_IN_FP16
from tunemill_trainer.release.servability import FAMILIES_WITH_VOCABULARY_LORA

pytestmark = pytest.mark.slow
_NAMES = re.compile(r'^    "(\w+)": \($', re.MULTILINE)


@cache
def embedding_modules(module: str, name: str) -> str:
    """Return the vocabulary layers that adapters may change, as the class or its bases declare them."""
    for node in tree_of(f"vllm.model_executor.models.{module}").body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for statement in node.body:
                targets = getattr(statement, "targets", [getattr(statement, "target", None)])
                if any(isinstance(target, ast.Name) and target.id == "embedding_modules" for target in targets):
                    return ast.unparse(statement.value)
            known = {found[1]: found for found in models().values()}
            bases = [ast.unparse(base) for base in node.bases]
            return next((embedding_modules(*known[base]) for base in bases if base in known), "")
    return ""


@pytest.mark.parametrize("model_type", sorted({name for family in catalogue.families() for name in family.types}))
def test_vocabulary_layers_match_vllm(model_type: str) -> None:
    """Families whose adapters may contain the embedding and the head."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    module, name = models().get(str(architecture), ("", ""))
    if not module or module == "transformers":
        pytest.skip("vLLM runs it by Transformers' own code, or as a part of another model")
    takes = "lm_head" in embedding_modules(module, name)
    assert takes == (model_type in FAMILIES_WITH_VOCABULARY_LORA)


def test_parsers_of_the_catalogue_exist_in_vllm() -> None:
    """Parsers of calls and of reasoning."""
    calls = set(_NAMES.findall((VLLM / "tool_parsers/__init__.py").read_text(encoding="utf-8")))
    assert {family.calls.value for family in catalogue.families() if family.calls} <= calls
    text = (VLLM / "reasoning/__init__.py").read_text(encoding="utf-8")
    reasoning = set(re.findall(r'^    "(\w+)": \(', text, re.MULTILINE))
    assert {family.reasoning for family in catalogue.families() if family.reasoning} <= reasoning


def test_families_without_fp16_support_are_known() -> None:
    """VLLM refuses FP16 for them."""
    text = (VLLM / "config/model.py").read_text(encoding="utf-8")
    listed = text.partition("_FLOAT16_NOT_SUPPORTED_MODELS = {")[2].partition("}")[0]
    refused = set(re.findall(r'"(\w+)":', listed))
    assert refused
    assert refused <= OUT_OF_RANGE_IN_FP16
