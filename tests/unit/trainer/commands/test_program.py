"""Behaviour shared by all commands: help, usage errors, Ctrl-C, progress bars and completion."""

import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from trainer.data.building import a_file, openai_row
from tunemill_api.failures import ExitCode
from tunemill_api.stage_report import Stage
from tunemill_trainer.__main__ import main, tunemill
from tunemill_trainer.commands import manifest, program, reference, run
from tunemill_trainer.commands.command import Task
from tunemill_trainer.process import bars
from tunemill_trainer.process.bars import ProgressBar

STAGES = ["prepare", "train", "evaluate", "publish", "stages"]
COMMANDS = [
    "lint",
    "show",
    "models",
    "plan",
    "run",
    "gpu-check",
    "score",
    "ask",
    "evaluate",
    "serve",
    "verify",
    "completion",
]


def usage_error(entry_point, *arguments: str) -> int:
    """Return the exit code of argparse."""
    with pytest.raises(SystemExit) as ended:
        entry_point(arguments)
    return ended.value.code


def test_help_groups_the_commands_by_task(capsys):
    """Stages are commands of the image only; `evaluate` on a laptop is another command."""
    assert usage_error(tunemill, "--help") == 0
    overview = capsys.readouterr().out
    headings = [line for line in overview.splitlines() if line in set(Task)]
    assert headings == ["Data", "Train", "Judge", "Release", "Shell"]
    listed = [line.split()[0] for line in overview.splitlines() if line.startswith("  ")]
    assert listed == COMMANDS
    assert usage_error(main, "--help") == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == [name for name in COMMANDS if name not in STAGES] + STAGES
    assert usage_error(tunemill, "prepare") == 2
    assert "invalid choice: 'prepare'" in capsys.readouterr().err
    assert usage_error(tunemill, "evaluate") == 2
    assert "required: --dataset" in capsys.readouterr().err
    assert usage_error(main, "evaluate", "--dataset", "x") == 2


@pytest.mark.parametrize("entry_point", [tunemill, main], ids=["tunemill", "tunemill-trainer"])
def test_version_is_that_of_the_distribution(entry_point, capsys):
    """After the name of the program."""
    assert usage_error(entry_point, "--version") == 0
    name = "tunemill" if entry_point is tunemill else "tunemill-trainer"
    assert capsys.readouterr().out.split() == [name, program._version()]
    assert program._version()[0].isdigit()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lint", "x", "--max-length", "0"], "argument --max-length: expected a whole number of at least 1, found '0'"),
        (["lint", "x", "--max-tool-ratio", "nan"], "argument --max-tool-ratio: expected a number above 0, found 'nan'"),
        (["show", "x", "--row", "one"], "argument --row: expected a whole number of at least 1, found 'one'"),
        (["score", "--rows", "x"], "the following arguments are required: --outputs"),
        (["lint", "x", "--format", "CSV"], "argument --format: invalid choice: 'CSV'"),
        (["gpu-check", "--minutes", "-1"], "argument --minutes: expected a number above 0"),
    ],
)
def test_a_usage_error_is_one_line_with_the_option(arguments, message, capsys):
    """It exits with 2 and refers to the help."""
    assert usage_error(tunemill, *arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"tunemill {arguments[0]}: ")
    assert message in err
    assert err.endswith(f"See `tunemill {arguments[0]} --help`.\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("entry_point", "command"),
    [
        pytest.param(entry_point, command, id=f"{name} {command.name}")
        for entry_point, name in ((tunemill, "tunemill"), (main, "tunemill-trainer"))
        for command in program.commands_of(name)
    ],
)
def test_every_command_has_help(entry_point, command, capsys):
    """Every `%` in a help text is formatted, and the examples can be parsed."""
    assert usage_error(entry_point, command.name, "--help") == 0
    assert "options:" in capsys.readouterr().out
    name = "tunemill" if entry_point is tunemill else "tunemill-trainer"
    for example in command.examples:
        text = example.replace("<(head -100 rows.jsonl)", "r").replace("<(head -100 outputs.jsonl)", "o")
        words = shlex.split(text)
        words = words[: min([words.index(sign) for sign in ("<", ">") if sign in words], default=None)]
        assert program.parse(name, words).command == command.name


@pytest.mark.parametrize("arguments", [["run", "x.yaml"], ["plan", "x.yaml"], ["gpu-check"]])
def test_missing_training_libraries_are_reported_with_the_extra(arguments, monkeypatch, capsys):
    """The light install has no torch."""
    monkeypatch.setattr(program, "_has_training_libraries", lambda: False)
    assert tunemill(arguments) == ExitCode.CONFIGURATION
    assert "pip install 'tunemill[train]'" in capsys.readouterr().err


def test_a_full_disk_is_reported_in_one_line(monkeypatch, tmp_path, capfd):
    """An output error is not a bug of Tunemill."""
    path = a_file(tmp_path, [openai_row()]).path
    command = [sys.executable, "-m", "tunemill_trainer", "lint", path]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == ExitCode.NODE_BROKEN
    assert ended.stderr == "tunemill-trainer: no space left on the disk: standard output\n"


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_exits_with_130_and_one_line(tmp_path):
    """While a command waits for its input."""
    fifo = tmp_path / "rows"
    os.mkfifo(fifo)
    command = [sys.executable, "-m", "tunemill_trainer", "lint", fifo]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        fifo.open("w"),  # returns when the command has opened it for reading
    ):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "tunemill-trainer: interrupted\n")


MANIFEST = """
apiVersion: tunemill.dev/v1alpha1
kind: FunctionCallFineTune
metadata: {name: tools}
spec: {baseModel: {id: ./base}, dataset: {uri: ./calls.jsonl}, publish: {repository: ./result}}
"""


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_stops_the_stage_of_a_run(tmp_path, monkeypatch, capsys):
    """The stage gets one SIGTERM, also when the terminal sends SIGINT to both processes; the run exits with 130."""
    python, started = tmp_path / "python", tmp_path / "started"
    python.write_text(
        f"#!{sys.executable}\nimport signal, sys, pathlib\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(started)!r}).touch()\n"
        "signal.pause()\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    path = tmp_path / "finetune.yaml"
    path.write_text(MANIFEST)

    def interrupt():
        while not started.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert run.run(path, tmp_path / "work") == 130
    printed = capsys.readouterr()
    assert printed.err == "tunemill run: interrupted; the same command continues from the last checkpoint\n"
    assert printed.out == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_manifest_can_be_read_from_standard_input(monkeypatch):
    """Relative paths start at the current folder, and its ConfigMaps are read."""
    config_map = "---\nkind: ConfigMap\nmetadata: {name: c}\ndata: {k: v}\n---\nkind: ConfigMap\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(MANIFEST + config_map))
    loaded = manifest.load(Path("-"))
    assert loaded.run.spec.dataset.uri == (Path.cwd() / "calls.jsonl").as_uri()
    assert loaded.config_maps["c"] == {"k": "v"}


@pytest.mark.parametrize("name", ["../../etc", "7", "[a]", "A b"])
def test_an_invalid_object_name_is_rejected(name, tmp_path, capsys):
    """The name becomes a part of paths."""
    path = tmp_path / "finetune.yaml"
    path.write_text(MANIFEST.replace("{name: tools}", f"{{name: {name}}}"))
    assert run.run(path, tmp_path / "work") == ExitCode.SPEC_WRONG
    assert "expected metadata.name" in capsys.readouterr().err


class Terminal(io.StringIO):
    """A stream whose isatty is true."""

    def isatty(self) -> bool:
        """Return true."""
        return True


def test_a_progress_bar_is_drawn_on_terminals_only(tmp_path, monkeypatch, capsys):
    """Its total is the number of rows, counted before they are read."""
    path = a_file(tmp_path, [openai_row(str(number)) for number in range(300)]).path
    assert tunemill(["lint", str(path)]) == 0
    assert capsys.readouterr().err == ""
    screen = Terminal()
    monkeypatch.setattr(sys, "__stdout__", Terminal())
    monkeypatch.setattr(sys, "__stderr__", screen)
    monkeypatch.setenv("TERM", "xterm")
    assert tunemill(["lint", str(path)]) == 0
    assert "reading   0 %" in screen.getvalue()
    assert "/300 rows" in screen.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    assert not bars.is_terminal()


def test_a_log_line_is_printed_above_the_bar(monkeypatch, capsys):
    """The bar is cleared, and drawn again after the line."""
    screen = Terminal()
    monkeypatch.setattr(sys, "__stdout__", Terminal())
    monkeypatch.setattr(sys, "__stderr__", screen)
    monkeypatch.setenv("TERM", "xterm")
    with ProgressBar(Stage.TRAIN, 100, "%") as bar:
        bar.advance_to(40, "loss=0.5")
        drawn = len(screen.getvalue())
        with bars.printing():
            assert screen.getvalue()[drawn:].strip("\r ") == ""
            assert "\r" in screen.getvalue()[drawn:]
        assert "train  40 %" in screen.getvalue()[drawn:]


COMPLETE = """
source /dev/stdin
COMP_WORDS=(tunemill "$@"); COMP_CWORD=$#; COMPREPLY=()
_shtab_tunemill
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["l"], {"lint"}),
        (["s"], {"show", "score", "serve"}),
        (["lint", "--max"], {"--max-tool-ratio", "--max-length"}),
        (["lint", "--format", "To"], {"ToolACE", "ToolBench"}),
        (["show", "calls"], {"calls.jsonl"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
    ],
)
def test_bash_completes_commands_options_values_and_files(words, completed, tmp_path, capsys):
    """With the interface of readline."""
    (tmp_path / "calls.jsonl").touch()
    assert tunemill(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    ended = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", *words], input=script, capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert set(ended.stdout.split()) == completed


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_scripts_of_other_shells_have_every_command(shell, capsys):
    """If the shell is installed, it parses the script."""
    assert tunemill(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert "--reply-format" in script.replace("-l reply-format", "--reply-format")
    if shutil.which(shell):
        subprocess.run([shell, "--no-execute", "/dev/stdin"], input=script, text=True, check=True)


def test_the_reference_page_does_not_depend_on_the_machine(monkeypatch):
    """`make lint` compares it."""
    page = reference.page()
    for name in ("HOME", "XDG_CACHE_HOME", "TUNEMILL_WORK", "HF_ENDPOINT"):
        monkeypatch.setenv(name, "/another")
    monkeypatch.setenv("COLUMNS", "40")
    assert reference.page() == page
    options = {word for word in page.split() if word.startswith("`--")}
    assert {"`--tokenizer", "`--reply-format", "`--published-as", "`--run-spec"} <= options
