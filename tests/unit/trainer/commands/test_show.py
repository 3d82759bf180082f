"""`tunemill show`: rows as the trainer reads them, and which parts are trained on."""

import json
import os
import pty
import subprocess
import sys

import pytest
from trainer.chat.speakers import CHATML, CHATML_TEMPLATE, GEMMA, GEMMA_TEMPLATE, a_speaker
from trainer.data.building import openai_row
from tunemill_trainer.__main__ import main

SPOKEN = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rain in Rome?"},
        {
            "role": "assistant",
            "reasoning_content": "Look it up.",
            "tool_calls": [
                {"id": "a", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}},
                {"id": "b", "function": {"name": "get_weather", "arguments": {"city": "Ostia"}}},
            ],
            "weight": 0,
        },
        {"role": "tool", "tool_call_id": "a", "content": "wet"},
        {"role": "tool", "tool_call_id": "b", "content": "dry"},
        {"role": "assistant", "content": "It rains."},
    ],
    "tools": openai_row()["tools"],
}
BROKEN = openai_row("b", town="Rome")


@pytest.fixture
def show(tmp_path, capsys, monkeypatch):
    """Writes rows to a file and runs the command; returns the exit code, the output and the errors."""
    monkeypatch.chdir(tmp_path)

    def run(rows, *arguments):
        (tmp_path / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        code = main(["show", "calls.jsonl", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_json_output_has_rows_in_openai_format(show):
    """Arguments are objects, reasoning has its field, responses have the id of their call, and turns have `loss`."""
    code, out, _ = show([SPOKEN], "--json")
    row = json.loads(out)
    assert code == 0
    assert row["messages"][2] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "Look it up.",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}},
            {"id": "call_2", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Ostia"}}},
        ],
    }
    assert [(turn["tool_call_id"], turn["content"]) for turn in row["messages"] if turn["role"] == "tool"] == [
        ("call_1", "wet"),
        ("call_2", "dry"),
    ]
    assert row["tools"] == SPOKEN["tools"]
    assert row["learnt"] == [False, True]


def test_json_output_is_read_as_the_same_row(show):
    """It can be used as a data set with the same meaning, except for the loss mask."""
    printed = json.loads(show([SPOKEN], "--json")[1])
    assert json.loads(show([printed], "--json")[1]) == printed | {"learnt": [True, True]}


def test_text_output(show):
    """A heading per turn; for the assistant, whether it is trained on."""
    code, out, _ = show([SPOKEN])
    assert code == 0
    assert out == (
        "calls.jsonl line 1  (OpenAI)\n"
        "  tools\n"
        "    get_weather(city: string, days?: integer): Weather of a city\n"
        "  system\n"
        "    Be brief.\n"
        "  user\n"
        "    Rain in Rome?\n"
        "  assistant\n"
        "    (reasoning) Look it up.\n"
        '    → get_weather {"city": "Rome"}\n'
        '    → get_weather {"city": "Ostia"}\n'
        "  tool get_weather\n"
        "    wet\n"
        "  tool get_weather\n"
        "    dry\n"
        "  assistant, learnt\n"
        "    It rains.\n"
        "\n"
    )


def test_an_unusable_row_exits_with_65_and_does_not_hide_others(show):
    """Its findings are shown instead; JSON output omits it."""
    code, out, _ = show([openai_row("a"), BROKEN, openai_row("c")])
    assert code == 65
    assert "line 2  (OpenAI)\n  error: extra-argument: get_weather has the argument town" in out
    assert out.count("assistant, learnt") == 2
    code, out, err = show([openai_row("a"), BROKEN, openai_row("c")], "--json")
    assert (code, len(out.splitlines())) == (65, 2)
    assert "calls.jsonl line 2: error: extra-argument" in err


def test_one_row_can_be_selected(show):
    """By its number; a missing one is reported."""
    rows = [openai_row(str(number)) for number in range(3)]
    assert json.loads(show(rows, "--row", 2, "--json")[1])["line"] == 2
    code, _, err = show(rows, "--row", 7)
    assert (code, "--row is 7, and no file has this row" in err) == (66, True)


def test_a_file_without_a_known_format_is_reported(show):
    """As by lint."""
    code, out, err = show([{"prompt": "a"}])
    assert (code, out) == (65, "")
    assert "found the fields: prompt" in err


@pytest.mark.parametrize(("special", "template"), [(CHATML, CHATML_TEMPLATE), (GEMMA, GEMMA_TEMPLATE)])
def test_with_a_tokenizer_the_rendered_text_is_shown(show, tmp_path, special, template):
    """With the template chosen by prepare; the end of a turn is trained on, its header is not."""
    a_speaker(special, template=template).save_pretrained(tmp_path / "base")
    code, out, _ = show([SPOKEN], "--tokenizer", tmp_path / "base")
    end = "<|im_end|>" if special is CHATML else "<end_of_turn>"
    assert code == 0
    assert out.count("⟦") == 1
    assert f"\n⟦It rains.{end}⟧\n" in out
    _, out, _ = show([SPOKEN], "--tokenizer", tmp_path / "base", "--json")
    (parts,) = json.loads(out)["rendered"]
    assert [part["text"] for part in parts if part["learnt"]] == [f"It rains.{end}"]
    assert "wet" in "".join(part["text"] for part in parts)


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colours_are_used_on_terminals_only(tmp_path, no_color, coloured):
    """Control characters of the row are escaped, also next to colours."""
    path = tmp_path / "calls.jsonl"
    path.write_text(json.dumps(openai_row("\x1b[31mred")))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tunemill_trainer", "show", path]
    environment = os.environ | {"NO_COLOR": no_color, "TERM": "xterm"}
    subprocess.run(command, stdout=theirs, env=environment, check=True, timeout=60)
    os.close(theirs)
    printed = os.read(ours, 10_000).decode()
    os.close(ours)
    assert ("\x1b[32m" in printed) is coloured
    assert "\x1b[31m" not in printed
    assert "\\u001b[31mred" in printed


def test_the_changes_of_the_augmentation_are_shown(show):
    """Each row as it is trained on, and the added rows, with the settings of a manifest."""
    described = openai_row()["tools"][0]
    other = {"type": "function", "function": {"name": "play_song", "description": "Plays", "parameters": {}}}
    row = openai_row() | {"tools": [described, other]}
    code, out, _ = show([row], "--augmentation", '{"maskedNames": "1", "irrelevantRows": "1"}')
    assert code == 0
    changed, added = out.split("calls.jsonl line 1")[1:]
    assert "maskedNames" in changed.splitlines()[0]
    assert "get_weather" not in changed
    assert "added" in added.splitlines()[0]
    assert "play_song" in added
    _, out, _ = show([row], "--augmentation", "--json")
    assert json.loads(out.splitlines()[0])["messages"][0] == row["messages"][0]


def test_invalid_augmentation_settings_are_reported(show):
    """With the field and the syntax of the option."""
    code, _, complaint = show([openai_row()], "--augmentation", '{"maskedNames": "2"}')
    assert code == 64
    assert "--augmentation: maskedNames: " in complaint
    assert '{"maskedNames": "0.5"}' in complaint
