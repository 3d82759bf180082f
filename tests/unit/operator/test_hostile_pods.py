"""Pods with false or malicious reports: a tenant's image can report anything."""

import json
import logging

import pytest
from property.builders import texts_in
from tunemill_api.plain_text import plain
from tunemill_api.stage_report import Stage
from tunemill_dev.played import a_report
from tunemill_operator.engine.attempts import report_of
from tunemill_operator.engine.failures import MESSAGE_LENGTH, shortened
from tunemill_operator.engine.objects import Container, Ended
from tunemill_operator.telemetry import logs

NASTY = "a\n2026-01-01T00:00:00Z error team-b/other: forged\r\x1b[2K\x9b31m\u202eb"


def container(message: str) -> Container:
    """Return the prepare container after it succeeded with this message."""
    return Container("prepare", "image", "", "", None, Ended(0, "Completed", message, None))


def test_facts_reported_by_a_pod_are_escaped():
    """They become the status, which is shown in terminals and web pages."""
    report = json.loads(a_report(Stage.PREPARE))
    report["prepared"] |= {"baseModelRevision": NASTY, "tokenizerMode": NASTY}
    report["prepared"]["dataset"]["format"] = NASTY
    for message in (json.dumps(report), json.dumps(report, ensure_ascii=False)):
        found = report_of(container(message))
        assert found is not None
        texts = [*texts_in(found.model_dump(mode="json"))]
        assert r"\u001b[2K" in found.prepared.base_model_revision
        assert all(plain(text) == text for text in texts)


@pytest.mark.parametrize(
    "message", ["{" * 4096, "[" * 4096, '{"stage": "prepare"', "{\x00}", '{"stage": "train"}', "\ud800"]
)
def test_an_invalid_report_is_ignored(message):
    """It becomes a message, never an error of the operator."""
    assert report_of(container(message)) is None


def test_a_message_is_one_line_of_bounded_length():
    """It is truncated after escaping, which makes it longer."""
    shown = shortened("\x1b" * 5000 + NASTY)
    assert len(shown) <= MESSAGE_LENGTH
    assert plain(shown) == shown


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_name_cannot_forge_a_log_line(form, capsys):
    """Neither by its own line feeds nor in a traceback."""
    before = logging.getLogger().handlers[:]
    try:
        logs.configure(form, "info")
        logging.getLogger("x").info("looking at %s", NASTY)
        try:
            raise ValueError(NASTY)
        except ValueError:
            logging.getLogger("x").exception("failed")
    finally:
        logging.getLogger().handlers[:] = before
    said = capsys.readouterr().err
    assert "forged" in said
    assert not [line for line in said.splitlines() if line.startswith("2026-01-01T00:00:00Z")]
    if form == "json":
        assert len([json.loads(line) for line in said.splitlines()]) == 2
