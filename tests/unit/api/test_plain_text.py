"""Untrusted text is escaped before it is shown."""

import json

import pytest
from pydantic import ValidationError
from tunemill_api.plain_text import parsed, plain
from tunemill_api.stage_report import StageReport
from tunemill_api.status import TrainerStatus


@pytest.mark.parametrize(
    "harmless", ["", "loss 0.5", "Größe: 3 €", "日本語　テキスト", "a\u00a0b", "{'a': \"b\"}", "\U0001f600"]
)
def test_readable_text_is_unchanged(harmless):
    """In any language, with spaces and symbols."""
    assert plain(harmless) == harmless


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nlevel=error forged", r"a\nlevel=error forged"),
        ("a\r\x1b[2K\x1b[1Agone", r"a\r\u001b[2K\u001b[1Agone"),
        ("\x9b31m", r"\u009b31m"),
        ("gnp.\u202egpj", r"gnp.\u202egpj"),
        ("a\u2028b\u2066c\u200bd", r"a\u2028b\u2066c\u200bd"),
        ("\U000e0041", r"\udb40\udc41"),
        ("\ud800", r"\ud800"),
        ("\x00\x7f", r"\u0000\u007f"),
    ],
)
def test_control_characters_are_escaped_as_in_json(text, shown):
    """Line ends, escape sequences, direction marks, invisible characters, lone surrogates."""
    assert plain(text) == shown
    assert plain(shown) == shown


def test_listed_characters_can_be_kept():
    """For example the line ends of a log."""
    assert plain("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\u001b"


def test_every_text_in_a_pod_report_is_escaped():
    """In names and values, at any depth, also if escaped in the JSON."""
    for metric in ('{"name": "a\\u001b[0m", "value": "\\n1"}', '{"name": "a\u202e", "value": "1\u0085"}'):
        status = parsed(TrainerStatus, f'{{"metrics": [{metric}]}}')
        assert all(plain(text) == text for item in status.metrics for text in (item.name, item.value))
        assert "\\u" in status.metrics[0].name


def test_a_harmless_report_is_unchanged():
    """A path with a backslash is not escaped twice."""
    report = StageReport.model_validate(
        {
            "stage": "prepare",
            "startedAt": "2026-01-01T00:00:00Z",
            "finishedAt": "2026-01-01T00:00:00Z",
            "failure": {"reason": "DatasetMalformed", "message": 'C:\\n "x" ä', "remedy": ""},
        }
    )
    assert parsed(StageReport, report.termination_message()) == report


@pytest.mark.parametrize(
    "text", ["{", "[" * 4000, json.dumps({"metrics": [{"name": "x" * 65, "value": ""}]}), "\ufffd"]
)
def test_an_unexpected_type_is_rejected(text):
    """With a validation error of pydantic."""
    with pytest.raises(ValidationError):
        parsed(TrainerStatus, text)
