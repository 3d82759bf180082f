"""Logs, reports and output of libraries have no secrets, and cannot forge log lines."""

import subprocess
import sys
from pathlib import Path

import pytest
from tunemill_api.failures import ExitCode, Reason
from tunemill_api.stage_report import failure_of
from tunemill_trainer.process.console import Redaction
from tunemill_trainer.storage.credentials import Credentials

TOKEN, KEY_ID, KEY = "hf_Canary0123456789", "AKIACANARY0000000001", "canary/of+s3=0123456789abcdef"

PROGRAM = """
import logging, sys, threading, warnings
from tunemill_trainer import __main__
from tunemill_trainer.commands import program
from tunemill_trainer.process import console
from tunemill_trainer.stages import runner

def say(command, options):
    console.log_to_stdout()
    token = {token!r}
    print("printed", token)
    print("printed", token, file=sys.stderr)
    warnings.warn(f"warned {{token}}")
    logging.getLogger("a").info("logged %s\\n2026-01-01T00:00:00+0000 INFO forged \\x1b[2K", token)
    handler = logging.StreamHandler()
    logging.getLogger("library").addHandler(handler)
    logging.getLogger("library").warning("library %s", token)
    try:
        raise ValueError(f"{{token}}\\n2026-01-01T00:00:00+0000 INFO forged")
    except ValueError:
        logging.getLogger("a").exception("failed")
    thread = threading.Thread(target=lambda: 1 / 0 if not token else (_ for _ in ()).throw(ValueError(token)))
    thread.start(); thread.join()
    raise RuntimeError(token)

program._run = say
sys.exit(__main__.main(["lint", "x"]))
"""


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    """Mounted Secrets with canary values, as the kubelet mounts them: links to a folder with a generated name."""
    values = {
        "hub-write/token": f"{TOKEN}\n",
        "dataset/AWS_ACCESS_KEY_ID": KEY_ID,
        "dataset/AWS_SECRET_ACCESS_KEY": KEY,
    }
    values["dataset/AWS_SESSION_TOKEN"] = "short"
    for name, value in values.items():
        folder, _, key = name.partition("/")
        real = tmp_path / folder / "..2026"
        real.mkdir(parents=True, exist_ok=True)
        (real / key).write_text(value)
        (tmp_path / folder / key).symlink_to(real / key)
    return Credentials(tmp_path)


def test_values_of_secrets_are_redacted(credentials: Credentials):
    """In plain and URL-encoded form. Values that are too short for a secret are kept."""
    hide = Redaction(credentials)
    assert hide(f"Bearer {TOKEN} is {KEY_ID}:{KEY}, in short") == "Bearer *** is ***:***, in short"
    assert "canary" not in hide("canary%2Fof%2Bs3%3D0123456789abcdef")


def test_other_keys_of_a_secret_are_not_redacted(credentials: Credentials):
    """A region, for example, which messages need. Binary values are ignored."""
    (credentials.directory / "dataset" / "region").write_text("eu-central-1")
    (credentials.directory / "hub-write" / "AWS_SESSION_TOKEN").write_bytes(b"\xff\xfe\x00")
    assert Redaction(credentials)("eu-central-1") == "eu-central-1"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("proxy http://user:pa55@proxy:3128 refused", "proxy http://***@proxy:3128 refused"),
        ("403 for url: https://s3/x?X-Amz-Signature=abc&b=c (id 1)", "403 for url: https://s3/x?*** (id 1)"),
        ('"https://hub/api?token=abc"', '"https://hub/api?***"'),
        ("s3://bucket/calls-?.jsonl and https://hub/a@b?", "s3://bucket/calls-?.jsonl and https://hub/a@b?"),
    ],
)
def test_credentials_in_urls_are_redacted(tmp_path: Path, text, shown):
    """Users with passwords and query strings, which sign requests, but not the wildcards of a data set's URI."""
    assert Redaction(Credentials(tmp_path))(text) == shown


def test_a_failure_is_redacted(credentials: Credentials):
    """Before it is shortened, which could leave half of a token."""
    failure = failure_of(Reason.INTERNAL_ERROR, f"{TOKEN} in 'a\n\x1b[31mb.jsonl'", f"Change {TOKEN}.")
    shown = Redaction(credentials).of_failure(failure)
    assert (shown.message, shown.remedy) == (r"*** in 'a\n\u001b[31mb.jsonl'", "Change ***.")


def test_all_output_is_redacted(credentials: Credentials):
    """print, warnings, handlers of libraries, tracebacks of threads and of the process. No line can be forged."""
    program = PROGRAM.format(token=TOKEN)
    environment = {"TUNEMILL_SECRETS_DIR": str(credentials.directory), "PATH": "", "HOME": str(credentials.directory)}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    said = ended.stdout + ended.stderr
    assert TOKEN not in said
    assert ended.returncode == ExitCode.INTERNAL_ERROR
    for words in ("printed ***", "warned ***", "logged ***", "library ***", "ValueError: ***", "RuntimeError: ***"):
        assert words in said
    assert "\x1b" not in said
    assert not [line for line in said.splitlines() if line.startswith("2026-01-01")]
