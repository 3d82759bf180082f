"""The output folder of prepare, written by prepare and read by the later stages. The only module that knows its layout.

- train.parquet: input_ids and labels, list<int32> each; a label of -100 means no loss
- evaluation.jsonl: one Case a line
- tokenizer/: what save_pretrained wrote, chat_template.jinja included
- tokens.json: Tokens
- base-model.json: BaseModel
- report.json: all findings, for the user
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
"""The label of a token that the loss is not computed on; the number is PyTorch's default `ignore_index`."""

TRAIN_FILE = "train.parquet"
"""The largest file, which only train needs."""

_ROWS_A_GROUP = 1024
_TOKEN_IDS = pa.list_(pa.int32())
_SCHEMA = pa.schema([("input_ids", _TOKEN_IDS), ("labels", _TOKEN_IDS)])


@dataclass(frozen=True)
class BaseModel:
    """The base model, with the commit that its revision stood for.

    Attributes:
        id: the repository on the Hub, or the file:// URI of a folder.
        revision: the commit.
        files: sha256 of each file of it that a stage loads. Empty in an output of a version that recorded none.
    """

    id: str
    revision: str
    files: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def place(self) -> str:
        """What a library loads it by: the repository on the Hub, or a folder of this machine."""
        return str(local_path(self.id)) if is_local(self.id) else self.id

    @property
    def digest(self) -> str:
        """sha256 over the names and digests of the files; empty where none is recorded."""
        text = json.dumps(dict(self.files), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest() if self.files else ""


@dataclass(frozen=True)
class NewToken:
    """A token that the base model's vocabulary did not have.

    Attributes:
        id: its id.
        token: its text.
        pieces: ids of the tokens that the base model writes it with; empty in an output of a version without them.
    """

    id: int
    token: str
    pieces: tuple[int, ...] = ()


@dataclass(frozen=True)
class Tokens:
    """What the later stages must know about the vocabulary.

    Attributes:
        mode: Reuse, Text or Extend, what was done. Only with Extend has the adapter rows that the base lacks.
        added: the tokens that were added; their ids follow each other.
        stop_token_ids: a reply ends with any of these; the end of turn of the chat template comes first.
        pad_token_id: fills a batch.
        vocabulary: rows that the embedding must have at least: the highest token id plus one.
        call_format: how calls are written.
    """

    mode: str
    added: tuple[NewToken, ...]
    stop_token_ids: tuple[int, ...]
    pad_token_id: int
    vocabulary: int
    call_format: str = "hermes"


@dataclass(frozen=True)
class Case:
    """One assistant turn of a held-out row with its history: what a model is asked, and what it should say.

    Attributes:
        id: file:line#turn, for example calls.jsonl:17#1; turns are the row's assistant turns, counted from 1.
        row: number of the held-out row in the data, so that rows can be counted apart from cases.
        messages: the history.
        tools: what may be called.
        prompt_ids: the history as the tuned model's template renders it, up to where the assistant begins to speak.
        gold: the assistant turn of the data.
        answer_ids: the token ids of the gold turn, its end included.
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
        """Tokens of the gold turn, its end included."""
        return len(self.answer_ids)

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
        self.tokenizer_path = folder / "tokenizer"
        self.tokens_path = folder / "tokens.json"
        self.base_model_path = folder / "base-model.json"
        self.report_path = folder / "report.json"

    def tokens(self) -> Tokens:
        """Return what was done to the vocabulary."""
        value = json.loads(self.tokens_path.read_text())
        added = tuple(
            NewToken(token["id"], token["token"], tuple(token.get("pieces", ()))) for token in value.pop("added")
        )
        return Tokens(**{**value, "added": added, "stop_token_ids": tuple(value["stop_token_ids"])})

    def base_model(self) -> BaseModel:
        """Return the base model and its commit."""
        return BaseModel(**json.loads(self.base_model_path.read_text()))

    def cases(self) -> Iterator[Case]:
        """Yield the held-out cases in the order of the data; all cases of a row follow each other."""
        with self.cases_path.open(encoding="utf-8") as lines:
            for line in lines:
                yield Case.from_json(json.loads(line))

    def trained_tools(self) -> frozenset[str]:
        """Return the tools that the training rows call."""
        side = cast("dict[str, dict[str, int]]", self.report()["train"])
        return frozenset(side["callsByTool"])

    def report(self) -> JsonObject:
        """Return all findings of prepare."""
        return cast("JsonObject", json.loads(self.report_path.read_text(encoding="utf-8")))


class PreparedWriter:
    """Writes the folder. Examples and cases are streamed, so that the size of the data does not matter.

    Use it as a context manager; the folder is whole after a normal exit.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.layout = Prepared(folder)
        self._columns = (_Lists(), _Lists())

    def __enter__(self) -> Self:
        self._parquet = pq.ParquetWriter(self.layout.train_path, _SCHEMA, compression="zstd")
        self._cases: TextIO = self.layout.cases_path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self._flush()
        self._cases.close()
        self._parquet.close()

    def add_example(self, input_ids: list[int], labels: list[int]) -> None:
        """Add one training row: as many labels as token ids."""
        self.add_examples([len(input_ids)], array("i", input_ids), array("i", labels))

    def add_examples(self, lengths: Sequence[int], input_ids: "array[int]", labels: "array[int]") -> None:
        """Add training rows: the length of each, and all token ids and labels one row after the other."""
        for column, values in zip(self._columns, (input_ids, labels), strict=True):
            column.extend(lengths, values)
        if len(self._columns[0]) >= _ROWS_A_GROUP:
            self._flush()

    def add_case(self, case: Case) -> None:
        """Add one held-out case."""
        self.add_case_line(case_line(case))

    def add_case_line(self, line: str) -> None:
        """Add one held-out case that `case_line` wrote."""
        self._cases.write(line)

    def describe(self, tokens: Tokens, base_model: BaseModel, report: JsonObject) -> None:
        """Write everything but the rows and the tokenizer."""
        for path, value in (
            (self.layout.tokens_path, dataclasses.asdict(tokens)),
            (self.layout.base_model_path, dataclasses.asdict(base_model)),
            (self.layout.report_path, report),
        ):
            path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        if len(self._columns[0]):
            taken = [column.take() for column in self._columns]
            self._parquet.write_table(pa.Table.from_arrays(taken, schema=_SCHEMA))


class _Lists:
    """A column of lists, kept as Arrow keeps it. Arrow would convert Python lists too, and import pandas for that."""

    def __init__(self) -> None:
        self._values = array("i")
        self._offsets = array("i", [0])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def extend(self, lengths: Sequence[int], values: "array[int]") -> None:
        """Add lists: the length of each, and the values of all."""
        start = len(self._values)
        self._values.extend(values)
        self._offsets.extend(start + end for end in accumulate(lengths))

    def take(self) -> pa.ListArray:
        """Return the column, and begin a new one."""
        offsets, values = (
            pa.Array.from_buffers(pa.int32(), len(numbers), [None, pa.py_buffer(numbers)])
            for numbers in (self._offsets, self._values)
        )
        self._values, self._offsets = array("i"), array("i", [0])
        return pa.ListArray.from_arrays(offsets, values)
