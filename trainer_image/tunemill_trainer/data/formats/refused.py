"""Rows that people have and that are not read, each with its name and what to do about it."""

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import JsonValue

from tunemill_trainer.data.rows import JsonObject


@dataclass(frozen=True)
class Refused:
    """A kind of rows.

    Attributes:
        name: what people call it.
        is_one: tells such a row.
        remedy: what to do.
    """

    name: str
    is_one: Callable[[JsonObject], bool]
    remedy: str


def _has(*fields: str) -> Callable[[JsonObject], bool]:
    return lambda row: all(row.get(field) is not None for field in fields)


def _is_text(value: JsonValue) -> bool:
    return isinstance(value, str) and value.lstrip()[:1] != "["


_BESIDE_TEXT = {"text", "id", "source", "meta", "metadata"}
_MEDIA = ("images", "image", "videos", "audios")

KINDS = (
    Refused(
        "preference data",
        lambda row: any(row.get(field) is not None for field in ("rejected", "rejected_response", "rejected_messages")),
        "Keep the chosen answers: write each as the last turn of `messages`.",
    ),
    Refused(
        "KTO data",
        lambda row: row.get("kto_tag") is not None or (isinstance(row.get("label"), bool) and len(row) > 1),
        "Keep the rows whose label is true, and take the label out.",
    ),
    Refused(
        "rows with pictures, sound or films",
        lambda row: any(row.get(field) for field in _MEDIA),
        "Leave these rows out: only text is learnt.",
    ),
    Refused(
        "a prompt and a completion of plain text",
        lambda row: _is_text(row.get("prompt")) and isinstance(row.get("completion"), str),
        "Write both as lists of turns: [{role, content}].",
    ),
    Refused(
        "prompts without completions",
        lambda row: isinstance(row.get("prompt"), list) and row.get("completion") is None and not _has("messages")(row),
        "Add the turns to be learnt as `completion`.",
    ),
    Refused(
        "Alpaca's format",
        lambda row: (
            _has("instruction", "output")(row)
            and not row.keys() & {"messages", "conversations"}
            and "API-Request:" not in f"{row['instruction']}{row['output']}"
        ),
        "Write `messages` with a turn of the user and one of the assistant.",
    ),
    Refused(
        "BFCL's questions without their answers",
        lambda row: _has("question", "function")(row) and row.get("ground_truth") is None,
        "Join them with the possible answers by `id`.",
    ),
    Refused(
        "BFCL's answers without their questions",
        lambda row: _has("ground_truth")(row) and row.get("question") is None,
        "Join them with the questions by `id`.",
    ),
    Refused(
        "a results file of tau2-bench",
        _has("simulations", "tasks"),
        "Write its simulations one a line.",
    ),
    Refused(
        "ToolAlpaca's format",
        _has("Instances", "Function_Description"),
        "Write `messages` with `tool_calls`.",
    ),
    Refused(
        "Gorilla's APIBench",
        _has("api_call", "api_data"),
        "Write `messages` with `tool_calls`.",
    ),
    Refused(
        "text that a chat template has rendered",
        lambda row: isinstance(row.get("text"), str) and row.keys() <= _BESIDE_TEXT,
        "Write the turns themselves as `messages`.",
    ),
)

_FIELDS = frozenset(
    {
        *("rejected", "rejected_response", "rejected_messages", "kto_tag", "label", *_MEDIA, "prompt", "instruction"),
        *("question", "ground_truth", "simulations", "Instances", "api_call", "text"),
    }
)
"""One of these is in every such row."""


def kind_of(row: JsonObject) -> Refused | None:
    """Return what kind of rows that are not read a row is of, if any."""
    if _FIELDS.isdisjoint(row):
        return None
    return next((kind for kind in KINDS if kind.is_one(row)), None)
