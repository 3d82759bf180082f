"""Writes a full model with its tokenizer and chat template into a GGUF file, for llama.cpp and Ollama."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter, Keys, LlamaFileType
from gguf.quants import dequantize, quant_shape_to_byte_shape, quantize
from tunemill_api.failures import Reason
from tunemill_api.publish import GgufQuantization

from tunemill_trainer.errors import StageError
from tunemill_trainer.prepared import Tokens
from tunemill_trainer.release import gguf_architecture
from tunemill_trainer.release.gguf_architecture import Array, Config, NotConvertibleError
from tunemill_trainer.release.gguf_vocabulary import read_vocabulary

_FORMATS = {
    "F32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "BF16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "Q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
FORMATS = tuple(_FORMATS)
_OF_TORCH = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_Q8_0_ERROR = 1 / 250
"""The largest error of Q8_0 as a share of a tensor's largest value: half a step of 127, and a scale rounded to F16."""


def refuse_inconvertible(folder: Path, *, added_tokens: int) -> None:
    """Check before training that the base model can be written as GGUF.

    Args:
        folder: has the config.json and the tokenizer.json of the base model.
        added_tokens: how many tokens training adds to the vocabulary.

    Raises:
        StageError: InvalidSpec, with what llama.cpp lacks.
    """
    config = _config(folder)
    try:
        writer = GGUFWriter(None, gguf_architecture.name_of(config))
        gguf_architecture.add_hyperparameters(writer, config)
        read_vocabulary(folder, config.vocab_size + added_tokens)
    except NotConvertibleError as error:
        raise refused(error) from error


def refused(error: NotConvertibleError) -> StageError:
    """Return the failure for a model that cannot be written as GGUF."""
    return StageError(
        Reason.INVALID_SPEC,
        f"spec.publish.artifacts has GGUF, and spec.baseModel cannot be written as GGUF: {error}",
        "Remove GGUF from spec.publish.artifacts, or choose another base model; docs/how-to/publishing.md lists the "
        "supported ones.",
    )


def write_gguf(folder: Path, path: Path, *, number_format: str, tokens: Tokens, prompt: Sequence[int]) -> None:
    """Write a GGUF file.

    Args:
        folder: a full model with tokenizer.json, tokenizer_config.json and chat_template.jinja.
        path: of the file.
        number_format: one of FORMATS, for matrices; vectors are always F32.
        tokens: has the stop tokens.
        prompt: the token ids of a prompt. If it begins with the BOS token, llama.cpp adds it to every text. It removes
            the one of the chat template first.

    Raises:
        NotConvertibleError: when llama.cpp would compute something else.
    """
    from transformers import AutoTokenizer

    config, tokenizer = _config(folder), AutoTokenizer.from_pretrained(folder)
    matrix, file_type = _FORMATS[number_format]
    writer = GGUFWriter(path, gguf_architecture.name_of(config))
    writer.add_name(path.stem)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    gguf_architecture.add_hyperparameters(writer, config)
    read_vocabulary(folder, config.vocab_size).add_to(writer)
    _add_special_tokens(writer, tokenizer, tokens)
    writer.add_add_bos_token(prompt[0] == tokenizer.bos_token_id)
    writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))
    with ExitStack() as stack:
        weights = _Weights(folder, config, stack)
        types = {}
        for name_there, shape in weights.shapes():
            types[name_there] = kind = _type(matrix, shape)
            size = math.prod(quant_shape_to_byte_shape(shape, kind))
            writer.add_tensor_info(name_there, shape, np.dtype(np.float32), size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name_there, values in weights.values():
            writer.write_tensor_data(quantize(values, types[name_there]))
    writer.close()


def file_name(repository: str, folder: Path, quantization: GgufQuantization) -> tuple[str, str]:
    """Return the name of the file, and its number format.

    `llama-server -hf repository:FORMAT` and Ollama find a file by the format at the end of its name.
    """
    number_format = quantization.value
    if quantization is GgufQuantization.NONE:
        number_format = _OF_TORCH[str(_config(folder).dtype).removeprefix("torch.")]
    name = repository.rsplit("/", 1)[-1].removesuffix("-GGUF")
    return f"{name}-{number_format}.gguf", number_format


def check_gguf(path: Path, folder: Path) -> None:
    """Read a GGUF file and compare it with the model of which it was made.

    Args:
        path: the file.
        folder: the full model.

    Raises:
        StageError: ProofFailed, with the first difference.
    """
    config = _config(folder)
    try:
        reader = GGUFReader(path)
    except (ValueError, OSError, KeyError, IndexError) as error:
        raise _differs(path, f"it cannot be read: {type(error).__name__}: {error}") from error
    vocabulary = read_vocabulary(folder, config.vocab_size)
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for key, wanted in (
        (Keys.Tokenizer.CHAT_TEMPLATE, template),
        (Keys.Tokenizer.LIST, vocabulary.tokens),
        (Keys.Tokenizer.TOKEN_TYPE, [int(kind) for kind in vocabulary.types]),
    ):
        field = reader.get_field(key)
        if field is None or field.contents() != wanted:
            raise _differs(path, f"its {key} is not that of the model")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    with ExitStack() as stack:
        for name, expected in _Weights(folder, config, stack).values():
            tensor = tensors.pop(name, None)
            if tensor is None:
                raise _differs(path, f"it lacks the tensor {name}")
            values = dequantize(tensor.data, tensor.tensor_type)
            if values.shape != expected.shape:
                raise _differs(path, f"its tensor {name} has the shape {values.shape}, expected {expected.shape}")
            share = _Q8_0_ERROR if tensor.tensor_type is GGMLQuantizationType.Q8_0 else 0.0
            difference = float(np.abs(values - expected).max(initial=0))
            if not difference <= share * float(np.abs(expected).max(initial=0)):
                raise _differs(path, f"its tensor {name} differs by {difference:.3g}")
    if tensors:
        raise _differs(path, f"it has tensors that the model has not: {', '.join(sorted(tensors))}")


class _Weights:
    """The weights of a saved model, as llama.cpp expects them. One is in memory at a time."""

    def __init__(self, folder: Path, config: Config, stack: ExitStack) -> None:
        from safetensors import safe_open

        self._config = config
        self._files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            opened = stack.enter_context(safe_open(path, framework="pt"))
            self._files |= dict.fromkeys(opened.keys(), opened)
        self._names = list(gguf_architecture.tensors(config, list(self._files)))
        self._extra = gguf_architecture.extra_tensors(config)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name in llama.cpp and the shape of each tensor."""
        for here, there in self._names:
            yield there, tuple(self._files[here].get_slice(here).get_shape())
        for there, tensor in self._extra.items():
            yield there, tensor.shape

    def values(self) -> Iterator[tuple[str, Array]]:
        """Yield the name in llama.cpp and the float32 values of each tensor, in the same order."""
        for here, there in self._names:
            tensor = self._files[here].get_tensor(here).float().numpy()
            yield there, gguf_architecture.converted(here, tensor, self._config)
        yield from self._extra.items()


def _config(folder: Path) -> Config:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


def _type(matrix: GGMLQuantizationType, shape: tuple[int, ...]) -> GGMLQuantizationType:
    """Return the number format of a tensor: llama.cpp computes with vectors in F32."""
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    # A row that cannot be cut into blocks of 32 stays in a format without blocks.
    return GGMLQuantizationType.F16 if shape[-1] % GGML_QUANT_SIZES[matrix][0] else matrix


def _add_special_tokens(writer: GGUFWriter, tokenizer: Any, tokens: Tokens) -> None:  # noqa: ANN401 - transformers
    """Write the special tokens. llama.cpp ends a reply at EOS, EOT and EOM, whose names do not matter for that."""
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokens.stop_token_ids[0]
    writer.add_eos_token_id(eos)
    others = [stop for stop in tokens.stop_token_ids if stop != eos]
    if len(others) > 2:
        raise NotConvertibleError(f"a reply ends with one of {len(others) + 1} tokens, and GGUF has room for three")
    for add, stop in zip((writer.add_eot_token_id, writer.add_eom_token_id), others, strict=False):
        add(stop)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)


def _differs(path: Path, how: str) -> StageError:
    return StageError(Reason.PROOF_FAILED, f"{path.name} differs from the model of which it was made: {how}")
