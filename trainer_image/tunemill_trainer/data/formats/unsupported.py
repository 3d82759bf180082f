"""Known kinds of rows that are not supported, each with its name and a remedy."""

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import JsonValue

from tunemill_trainer.data.rows import JsonObject


@dataclass(frozen=True)
class UnsupportedKind:
    """A kind of unsupported rows.

    Attributes:
        name: the common name.
        matches: returns whether a row is of this kind.
        remedy: how to convert such rows.
    """

    name: str
    matches: Callable[[JsonObject], bool]
    remedy: str


def _has(*fields: str) -> Callable[[JsonObject], bool]:
    return lambda row: all(row.get(field) is not None for field in fields)


def _is_text(value: JsonValue) -> bool:
    return isinstance(value, str) and value.lstrip()[:1] != "["


_BESIDE_TEXT = {"text", "id", "source", "meta", "metadata"}
_MEDIA = ("images", "image", "videos", "audios")

KINDS = (
    UnsupportedKind(
        "preference data",
        lambda row: any(row.get(field) is not None for field in ("rejected", "rejected_response", "rejected_messages")),
        "Keep the chosen responses: write each as the last turn of `messages`.",
    ),
    UnsupportedKind(
        "KTO data",
        lambda row: row.get("kto_tag") is not None or (isinstance(row.get("label"), bool) and len(row) > 1),
        "Keep the rows whose label is true, and remove the label.",
    ),
    UnsupportedKind(
        "rows with images, audio or video",
        lambda row: any(row.get(field) for field in _MEDIA),
        "Remove these rows: only text is supported.",
    ),
    UnsupportedKind(
        "prompts and completions of plain text",
        lambda row: _is_text(row.get("prompt")) and isinstance(row.get("completion"), str),
        "Write both as lists of turns: [{role, content}].",
    ),
    UnsupportedKind(
        "prompts without completions",
        lambda row: isinstance(row.get("prompt"), list) and row.get("completion") is None and not _has("messages")(row),
        "Add the turns to train on as `completion`.",
    ),
    UnsupportedKind(
        "rows in the Alpaca format",
        lambda row: (
            _has("instruction", "output")(row)
            and not row.keys() & {"messages", "conversations"}
            and "API-Request:" not in f"{row['instruction']}{row['output']}"
        ),
        "Write `messages` with a user turn and an assistant turn.",
    ),
    UnsupportedKind(
        "BFCL questions without answers",
        lambda row: _has("question", "function")(row) and row.get("ground_truth") is None,
        "Join them with the possible answers by `id`.",
    ),
    UnsupportedKind(
        "BFCL answers without questions",
        lambda row: _has("ground_truth")(row) and row.get("question") is None,
        "Join them with the questions by `id`.",
    ),
    UnsupportedKind(
        "results of tau2-bench",
        _has("simulations", "tasks"),
        "Write one simulation per line.",
    ),
    UnsupportedKind(
        "rows in the ToolAlpaca format",
        _has("Instances", "Function_Description"),
        "Write `messages` with `tool_calls`.",
    ),
    UnsupportedKind(
        "rows of Gorilla's APIBench",
        _has("api_call", "api_data"),
        "Write `messages` with `tool_calls`.",
    ),
    UnsupportedKind(
        "text rendered by a chat template",
        lambda row: isinstance(row.get("text"), str) and row.keys() <= _BESIDE_TEXT,
        "Write the turns as `messages`.",
    ),
)

_FIELDS = frozenset(
    {
        *("rejected", "rejected_response", "rejected_messages", "kto_tag", "label", *_MEDIA, "prompt", "instruction"),
        *("question", "ground_truth", "simulations", "Instances", "api_call", "text"),
    }
)
"""Every unsupported row has one of these fields."""


def kind_of(row: JsonObject) -> UnsupportedKind | None:
    """Return the kind of an unsupported row, or None."""
    if _FIELDS.isdisjoint(row):
        return None
    return next((kind for kind in KINDS if kind.matches(row)), None)
