"""The fuzz targets. Each makes an input from random numbers and passes it through the trainer's code."""

import io
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tunemill_api.data import DatasetFormat
from tunemill_trainer.chat import templates
from tunemill_trainer.chat.encoding import Encoder
from tunemill_trainer.data import formats
from tunemill_trainer.data.dataset import Features
from tunemill_trainer.data.files import DataFile
from tunemill_trainer.data.findings import Rule
from tunemill_trainer.data.reading import RowReader
from tunemill_trainer.data.records import Line, records
from tunemill_trainer.data.rows import Message, Role, Row, Source, Tool
from tunemill_trainer.data.shown import conversation, openai_form
from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.lenient import read_leniently
from tunemill_trainer.judge.metrics import Reply, score
from tunemill_trainer.judge.parse import ReplyFormat, detect, parse_reply
from tunemill_trainer.prepared import Case

from tunemill_dev.fuzz import mutate
from tunemill_dev.fuzz.seeds import REPLIES, ROWS

_HERE = Source("fuzz.jsonl", 1)
_FORMATS = tuple(formats.READERS)
_REPLY_FORMATS = tuple(ReplyFormat)


class FoundError(Exception):
    """An input that the trainer does not handle.

    Args:
        what: the error, the same for inputs that show the same defect.
    """


def row(random: Random) -> bytes:
    """Read a row in the detected or in any format, as lint and prepare do. Return the line."""
    line = mutate.row(random)
    usable_row(line, random.choice(_FORMATS) if random.random() < 0.3 else DatasetFormat.AUTO)
    return line


def usable_row(line: bytes, form: DatasetFormat) -> Row | None:
    """Return the row of a line if it is usable.

    Raises:
        FoundError: the reader fails.
    """
    record = Line(_HERE, line).parsed()
    try:
        form = formats.detect([record], "fuzz.jsonl", form)
    except StageError:
        form = _FORMATS[len(line) % len(_FORMATS)]
    read = RowReader(form).read(record)
    for problem in read.problems:
        if problem.rule is Rule.INTERNAL_ERROR:
            raise FoundError(problem.message)
        # Messages are written to files and terminals, which need valid UTF-8.
        problem.message.encode(errors="strict")
    if read.row is None:
        if not read.problems:
            raise FoundError("a row is not usable, and there is no finding")
        return None
    json.dumps(openai_form(read.row), ensure_ascii=False, allow_nan=False).encode()
    for _ in conversation(read.row):
        pass
    for message in read.row.messages:
        if Message.from_json(json.loads(json.dumps(message.to_json()))) != message:
            raise FoundError("a message changes when it is written and read")
    return read.row


def encoded_row(random: Random) -> bytes:
    """Render and tokenize a usable row. Return the line."""
    line = mutate.row(random)
    found = usable_row(line, DatasetFormat.AUTO)
    if found is not None:
        encoded = _encoder().encode([found])[0]
        for example in encoded.examples:
            if len(example.labels(everything=False)) != len(example.input_ids):
                raise FoundError("labels and token ids differ in number")
    return line


def reply(random: Random) -> bytes:
    """Parse a reply in all formats, leniently and strictly, and evaluate it. Return the reply."""
    text = mutate.text(random, random.choice(REPLIES))
    for reply_format in filter(None, (detect([text]), random.choice(_REPLY_FORMATS), random.choice(_REPLY_FORMATS))):
        found = parse_reply(text, reply_format)
        for call in found.calls:
            json.dumps(call.to_json(), ensure_ascii=False, allow_nan=False).encode()
        if found.calls and found.error:
            raise FoundError(f"{reply_format} finds calls in a reply that it reports as broken")
    read_leniently(text)
    gold, tools = random.choice(_questions())
    case = Case("fuzz", 1, (Message(Role.USER, "Rain?"),), tools, (), gold, ())
    score([case], [Reply(text, random.choice((True, False, None)))], random.choice(_REPLY_FORMATS))
    return text.encode(errors="surrogatepass")


def file(random: Random) -> bytes:
    """Read a file of any type with changed bytes. Return its content."""
    content = random.choice(_files())
    if random.random() < 0.9:
        content = mutate.content(random, content)
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as written:
        written.write(content)
        written.flush()
        try:
            for record in records(DataFile("fuzz", Path(written.name), sha256="")):
                if record.value is None:
                    record.error.encode()
        except StageError as error:
            error.message.encode()
    return content


TARGETS: dict[str, tuple[float, Callable[[Random], bytes]]] = {
    "row": (0.62, row),
    "reply": (0.33, reply),
    "encoded row": (0.03, encoded_row),
    "file": (0.02, file),
}
"""Name → share of the inputs, and the target."""


@cache
def _questions() -> tuple[tuple[Message, tuple[Tool, ...]], ...]:
    """Return expected answers with the tools that may be called."""
    usable = [usable_row(json.dumps(each).encode(), DatasetFormat.AUTO) for each in ROWS]
    return tuple(
        (message, each.tools)
        for each in usable
        if each is not None
        for message in each.messages
        if message.role is Role.ASSISTANT
    )


@cache
def _files() -> tuple[bytes, ...]:
    """Return small files of all types."""
    import gzip

    lines = "".join(json.dumps(each) + "\n" for each in ROWS[:4]).encode()
    listed = json.dumps(list(ROWS[:4])).encode()
    table = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist([{key: json.dumps(value) for key, value in each.items()} for each in ROWS[:3]]), table
    )
    nested = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([ROWS[2]] * 3), nested, compression="none")
    return lines, listed, gzip.compress(lines), gzip.compress(listed), table.getvalue(), nested.getvalue()


@cache
def _encoder() -> Encoder:
    """Return an encoder with a byte tokenizer, which is created in milliseconds."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    speaker = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    speaker.add_tokens([AddedToken(token, special=True, normalized=False) for token in ("<|im_start|>", "<|im_end|>")])
    everything = Features(system=True, tools=True, calls=True, responses=True, reasoning=True)
    return templates.tunemill_template(speaker, everything, "").encoder
