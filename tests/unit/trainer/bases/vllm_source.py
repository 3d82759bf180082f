"""Reads vLLM's source without importing it: `make test-unit` has it in build/vllm."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

VLLM = Path(__file__).parents[4] / "build" / "vllm" / "vllm"
_MODELS = "vllm.model_executor.models"
_SHARED = "vllm.model_executor.layers.mamba"


@cache
def models() -> dict[str, tuple[str, str]]:
    """Return vLLM's models: architecture → module and class."""
    text = (VLLM / "model_executor/models/registry.py").read_text(encoding="utf-8")
    found = re.findall(r'"(\w+)":\s*\(\s*"([\w.]+)",\s*"(\w+)",?\s*\)', text)
    return {architecture: (module, name) for architecture, module, name in found}


def linear_layers(architecture: str) -> set[str] | None:
    """Return the last parts of the names of a model's linear layers, and of those that they are packed from.

    None if vLLM runs the model by Transformers' own code: then these are all linear layers.
    """
    module, _ = models().get(architecture, ("transformers", ""))
    return None if module == "transformers" else _layers(f"{_MODELS}.{module}")


@cache
def tree_of(module: str) -> ast.Module:
    """Return the syntax tree of a module of vLLM."""
    path = VLLM.parent / Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def _layers(module: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
                if isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith("Linear"):
                    found.add(name)
        if isinstance(node, ast.Dict):
            # packed_modules_mapping: a layer, and the layers whose weights it has side by side.
            for value in node.values:
                if isinstance(value, ast.List):
                    found |= {each.value for each in value.elts if isinstance(each, ast.Constant)}
    return found.union(*map(_layers, _imported(module)))


def _imported(module: str) -> Iterator[str]:
    """Yield the modules with models and shared layers that a module imports from."""
    for node in tree_of(module).body:
        if isinstance(node, ast.ImportFrom):
            name = f"{_MODELS}.{node.module}" if node.level == 1 and module.startswith(_MODELS) else node.module or ""
            model = name.startswith(f"{_MODELS}.") and name.count(".") == module.count(".")
            if name != module and (model or name.startswith(f"{_SHARED}.")):
                yield name
