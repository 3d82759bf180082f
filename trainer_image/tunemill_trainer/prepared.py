"""The output folder of prepare, which later stages read. Only this module knows its layout.

- train.parquet: input_ids and labels, list<int32> each; the label -100 excludes a token from the loss. A suite has none
- evaluation.jsonl: one Case per line, of the held-out rows
- validation.jsonl: the same of the validation rows, if there are any
- tokenizer/: the output of save_pretrained, including chat_template.jinja
- tokens.json: Tokens
- base-model.json: BaseModel
- adapter.json: BaseModel, of the adapter from which training starts, if there is one
- report.json: statistics and findings, for the user
"""

import dataclasses
import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Self, TextIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from tunemill_api.local_files import is_local, local_path

from tunemill_trainer.data.rows import JsonObject, Message, Tool

IGNORED = -100
"""The label of tokens that are excluded from the loss: PyTorch's default `ignore_index`."""

TRAIN_FILE = "train.parquet"
"""The largest file. Only train needs it."""

_ROWS_A_GROUP = 1024
_TOKEN_IDS = pa.list_(pa.int32())
_SCHEMA = pa.schema([("input_ids", _TOKEN_IDS), ("labels", _TOKEN_IDS)])


@dataclass(frozen=True)
class BaseModel:
    """The base model, or the adapter from which training starts, with its revision resolved to a commit.

    Attributes:
        id: the repository on the Hub, or the file:// URI of a folder.
        revision: the commit.
        files: the SHA-256 of each file that a stage loads. Empty in the output of older versions.
    """

    id: str
    revision: str
    files: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def place(self) -> str:
        """The `pretrained_model_name_or_path` for libraries: the repository on the Hub, or a local folder."""
        return str(local_path(self.id)) if is_local(self.id) else self.id

    @property
    def digest(self) -> str:
        """The SHA-256 of the names and digests of the files; empty if none is recorded."""
        text = json.dumps(dict(self.files), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest() if self.files else ""


@dataclass(frozen=True)
class NewToken:
    """A token that was added to the base model's vocabulary.

    Attributes:
        id: the token id.
        token: the text.
        pieces: the token ids of the text in the base model's vocabulary. Empty in the output of older versions.
    """

    id: int
    token: str
    pieces: tuple[int, ...] = ()


@dataclass(frozen=True)
class Tokens:
    """What the later stages need to know about the vocabulary.

    Attributes:
        mode: the effective mode: Reuse, Text or Extend. Only with Extend, the adapter has new embedding rows.
        added: the added tokens, with consecutive ids.
        stop_token_ids: the tokens that end a reply; the end-of-turn token of the chat template comes first.
        pad_token_id: the padding token.
        vocabulary: the minimum number of embedding rows: the highest token id plus one.
        call_format: the call format of the chat template.
    """

    mode: str
    added: tuple[NewToken, ...]
    stop_token_ids: tuple[int, ...]
    pad_token_id: int
    vocabulary: int
    call_format: str = "hermes"


@dataclass(frozen=True)
class Case:
    """One evaluation case: an assistant turn of a held-out row, with the messages before it as the prompt.

    Attributes:
        id: file:line#turn, for example calls.jsonl:17#1. The row's assistant turns count from 1.
        row: the number of the held-out row in the data. One row can have several cases.
        messages: the messages before the turn.
        tools: the available tools.
        prompt_ids: the token ids of the messages and the generation prompt, in the tuned model's chat template.
        gold: the expected assistant turn.
        answer_ids: the token ids of the expected turn, including its end-of-turn token.
    """

    id: str
    row: int
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    prompt_ids: tuple[int, ...]
    gold: Message
    answer_ids: tuple[int, ...]

    @property
    def answer_tokens(self) -> int:
        """The number of tokens of the expected turn, including its end-of-turn token."""
        return len(self.answer_ids)

    @property
    def tokens(self) -> int:
        """The number of tokens of the prompt and the expected turn."""
        return len(self.prompt_ids) + self.answer_tokens

    def to_json(self) -> JsonObject:
        """Return the case as a line of evaluation.jsonl."""
        return {
            "id": self.id,
            "row": self.row,
            "messages": [message.to_json() for message in self.messages],
            "tools": [tool.to_json() for tool in self.tools],
            "prompt_ids": list(self.prompt_ids),
            "gold": self.gold.to_json(),
            "answer_ids": list(self.answer_ids),
        }

    @classmethod
    def from_json(cls, value: JsonObject) -> Self:
        """Read what `to_json` wrote."""
        return cls(
            id=cast("str", value["id"]),
            row=cast("int", value["row"]),
            messages=tuple(Message.from_json(message) for message in cast("list[JsonObject]", value["messages"])),
            tools=tuple(Tool.from_json(tool) for tool in cast("list[JsonObject]", value["tools"])),
            prompt_ids=tuple(cast("list[int]", value["prompt_ids"])),
            gold=Message.from_json(cast("JsonObject", value["gold"])),
            answer_ids=tuple(cast("list[int]", value["answer_ids"])),
        )


def case_line(case: Case) -> str:
    """Return a case as a line of evaluation.jsonl."""
    return json.dumps(case.to_json(), ensure_ascii=False) + "\n"


class Prepared:
    """Reads a folder that prepare wrote."""

    def __init__(self, folder: Path) -> None:
        self.train_path = folder / TRAIN_FILE
        self.cases_path = folder / "evaluation.jsonl"
        self.validation_path = folder / "validation.jsonl"
        self.tokenizer_path = folder / "tokenizer"
        self.tokens_path = folder / "tokens.json"
        self.base_model_path = folder / "base-model.json"
        self.adapter_path = folder / "adapter.json"
        self.report_path = folder / "report.json"

    def tokens(self) -> Tokens:
        """Read tokens.json."""
        value = json.loads(self.tokens_path.read_text())
        added = tuple(
            NewToken(token["id"], token["token"], tuple(token.get("pieces", ()))) for token in value.pop("added")
        )
        return Tokens(**{**value, "added": added, "stop_token_ids": tuple(value["stop_token_ids"])})

    def base_model(self) -> BaseModel:
        """Read base-model.json."""
        return BaseModel(**json.loads(self.base_model_path.read_text()))

    def adapter(self) -> BaseModel | None:
        """Read adapter.json; None without spec.baseModel.adapter."""
        return BaseModel(**json.loads(self.adapter_path.read_text())) if self.adapter_path.exists() else None

    def cases(self) -> Iterator[Case]:
        """Yield the held-out cases in the order of the data. The cases of a row are consecutive."""
        yield from _read_cases(self.cases_path)

    def validation_cases(self) -> Iterator[Case]:
        """Yield the cases of the validation rows in the same way; none without spec.dataset.validation."""
        if self.validation_path.exists():
            yield from _read_cases(self.validation_path)

    def trained_tools(self) -> frozenset[str]:
        """Return the names of the tools that the training rows call."""
        sides = cast("dict[str, dict[str, dict[str, int]]]", self.report())
        return frozenset(name for split in ("train", "replay") for name in sides.get(split, {}).get("callsByTool", {}))

    def keeps_template(self) -> bool:
        """Return whether the chat template is the base model's own."""
        # Older outputs do not say it.
        chosen = cast("dict[str, str]", self.report().get("chatTemplate", {}))
        return chosen.get("origin") == "base"

    def report(self) -> JsonObject:
        """Read report.json."""
        return cast("JsonObject", json.loads(self.report_path.read_text(encoding="utf-8")))


def _read_cases(path: Path) -> Iterator[Case]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield Case.from_json(json.loads(line))


class PreparedWriter:
    """Writes the folder. Examples and cases are streamed, so memory does not grow with the data.

    Use it as a context manager; the folder is complete after a normal exit.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.layout = Prepared(folder)
        self._columns = (_Lists(), _Lists())
        self._validation: TextIO | None = None
        self._parquet: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        self._cases: TextIO = self.layout.cases_path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self._flush()
        self._cases.close()
        if self._validation is not None:
            self._validation.close()
        if self._parquet is not None:
            self._parquet.close()

    def add_example(self, input_ids: list[int], labels: list[int]) -> None:
        """Add one training row with one label per token id."""
        self.add_examples([len(input_ids)], array("i", input_ids), array("i", labels))

    def add_examples(self, lengths: Sequence[int], input_ids: "array[int]", labels: "array[int]") -> None:
        """Add training rows: the length of each, and the concatenated token ids and labels."""
        for column, values in zip(self._columns, (input_ids, labels), strict=True):
            column.extend(lengths, values)
        if len(self._columns[0]) >= _ROWS_A_GROUP:
            self._flush()

    def add_case(self, case: Case) -> None:
        """Add one held-out case."""
        self.add_case_line(case_line(case))

    def add_case_line(self, line: str) -> None:
        """Add one held-out case as a line from `case_line`."""
        self._cases.write(line)

    def add_validation_case_line(self, line: str) -> None:
        """Add one case of a validation row as a line from `case_line`."""
        if self._validation is None:
            self._validation = self.layout.validation_path.open("w", encoding="utf-8")
        self._validation.write(line)

    def write_report(self, report: JsonObject) -> None:
        """Write report.json."""
        _write_json(self.layout.report_path, report)

    def describe(
        self, tokens: Tokens, base_model: BaseModel, report: JsonObject, adapter: BaseModel | None = None
    ) -> None:
        """Write tokens.json, base-model.json, report.json and, with an adapter to start from, adapter.json."""
        _write_json(self.layout.tokens_path, dataclasses.asdict(tokens))
        _write_json(self.layout.base_model_path, dataclasses.asdict(base_model))
        if adapter is not None:
            _write_json(self.layout.adapter_path, dataclasses.asdict(adapter))
        self.write_report(report)

    def _flush(self) -> None:
        if len(self._columns[0]):
            if self._parquet is None:
                self._parquet = pq.ParquetWriter(self.layout.train_path, _SCHEMA, compression="zstd")
            taken = [column.take() for column in self._columns]
            self._parquet.write_table(pa.Table.from_arrays(taken, schema=_SCHEMA))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class _Lists:
    """A column of lists in Arrow's layout. Converting Python lists with Arrow would import pandas."""

    def __init__(self) -> None:
        self._values = array("i")
        self._offsets = array("i", [0])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def extend(self, lengths: Sequence[int], values: "array[int]") -> None:
        """Add lists: the length of each, and the concatenated values."""
        start = len(self._values)
        self._values.extend(values)
        self._offsets.extend(start + end for end in accumulate(lengths))

    def take(self) -> pa.ListArray:
        """Return the column, and start a new one."""
        offsets, values = (
            pa.Array.from_buffers(pa.int32(), len(numbers), [None, pa.py_buffer(numbers)])
            for numbers in (self._offsets, self._values)
        )
        self._values, self._offsets = array("i"), array("i", [0])
        return pa.ListArray.from_arrays(offsets, values)
