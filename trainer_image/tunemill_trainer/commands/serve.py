"""`tunemill serve`: starts vLLM or Transformers on this machine for a release, with the flags of its contract.

tunemill serve result
tunemill serve acme/support-tools@v1 --engine vLLM -- --max-model-len 8192
"""

import argparse
import json
import math
import os
import re
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from tunemill_api.constants import PUBLIC_HUB
from tunemill_api.failures import ExitCode
from tunemill_api.local_files import is_local
from tunemill_api.publish import ServingTarget

from tunemill_trainer.commands import output
from tunemill_trainer.commands.command import Command, Task
from tunemill_trainer.process import console

if TYPE_CHECKING:
    from tunemill_trainer.release.contract import Launch

_ENGINES = [target.value for target in ServingTarget if target is not ServingTarget.NONE]
_REPOSITORY = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_BRANCH = "main"
_TOOL = {
    "name": "get_weather",
    "description": "Current weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    engines = {engine.lower(): engine for engine in _ENGINES}
    command.add_argument(
        "release",
        metavar="RESULT",
        help="the folder of a release, a folder that `tunemill run` published to, or a repository on the Hub as "
        "owner/name@revision; a private one needs a token in HF_TOKEN",
    )
    command.add_argument(
        "--engine",
        type=lambda text: engines.get(text.lower(), text),
        choices=_ENGINES,
        metavar="ENGINE",
        help=f"{' or '.join(_ENGINES)} (default: that of spec.publish.serving, or else the one that is installed)",
    )
    command.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="the address to listen on (default: %(default)s)"
    )
    command.add_argument(
        "--port", type=_port, default=8000, metavar="PORT", help="the port; 0 takes a free one (default: %(default)s)"
    )
    command.usage = "%(prog)s [-h] [--engine ENGINE] [--host ADDRESS] [--port PORT] RESULT [-- FLAG …]"


def main(options: argparse.Namespace) -> int:
    """Run the server until Ctrl-C, SIGTERM or its own end, and return the exit code."""
    # huggingface_hub reads this at import. Against a server without Xet it hangs for more than a minute.
    if os.environ.get("HF_ENDPOINT", PUBLIC_HUB).rstrip("/") != PUBLIC_HUB:
        os.environ["HF_HUB_DISABLE_XET"] = "1"
    from tunemill_trainer.serving.engine import running
    from tunemill_trainer.serving.errors import ServingError

    try:
        folder = _folder_of(options.release)
        launch = _launch(folder, ServingTarget(options.engine) if options.engine else None)
        with _ended_by_sigterm(), running(launch, host=options.host, port=options.port, flags=options.flags) as engine:
            engine.wait_until_healthy(math.inf)  # the user sees the log, and has Ctrl-C
            console.show(ready_text(engine.url, engine.model))
            console.flush()
            code = engine.wait()
    except ServingError as error:
        return output.fail("serve", str(error), error.code)
    except (_TerminatedError, KeyboardInterrupt):
        # This is how a server ends.
        return ExitCode.DONE
    if code:
        return output.fail("serve", f"the server exited with code {code}", ExitCode.SERVICE_UNAVAILABLE)
    return ExitCode.DONE


def ready_text(url: str, model: str) -> str:
    """Return the base URL, the model's name and an example request."""
    request = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the weather in Oslo?"}],
        "tools": [{"type": "function", "function": _TOOL}],
        "temperature": 0,
    }
    return f"""
base URL  {url}
model     {model}

curl {shlex.quote(f"{url}/chat/completions")} --json {shlex.quote(json.dumps(request))}

Ctrl-C ends the server."""


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, found {text!r}")
    return int(text)


def _folder_of(release: str) -> Path:
    """Return the folder of a release; one on the Hub is downloaded into the cache of HF_HOME.

    Raises:
        ServingError: there is no such release.
    """
    from tunemill_trainer.release.contract import CONTRACT
    from tunemill_trainer.release.local_releases import path_of
    from tunemill_trainer.serving.errors import ServingError

    folder = Path(release)
    if folder.is_dir():
        if (folder / CONTRACT).is_file():
            return folder.resolve()
        # What `tunemill run` published to.
        latest = path_of(folder, _BRANCH)
        return (latest if latest.is_dir() else folder).resolve()
    named = _REPOSITORY.fullmatch(release)
    if named is None:
        raise ServingError(
            f"{release} is neither a folder nor a repository such as owner/name@revision", ExitCode.INPUT_MISSING
        )
    return _download(named["name"], named["revision"] or _BRANCH)


def _download(repository: str, revision: str) -> Path:
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    from tunemill_trainer.serving.errors import ServingError

    where = f"{repository} at {revision}"
    try:
        # False and not None: huggingface_hub would send a token from its file, which is for the public Hub.
        return Path(snapshot_download(repository, revision=revision, token=os.environ.get("HF_TOKEN") or False))
    except HfHubHTTPError as error:
        status = error.response.status_code
        code = ExitCode.PERMISSION_DENIED if status in {401, 403} else ExitCode.INPUT_MISSING
        raise ServingError(
            f"{where} cannot be read: HTTP {status}; correct its name, or set HF_TOKEN to a token that may read it",
            code,
        ) from error
    except (httpx2.HTTPError, LocalEntryNotFoundError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ServingError(f"{where} cannot be downloaded: {first}", ExitCode.SERVICE_UNAVAILABLE) from error


def _launch(folder: Path, engine: ServingTarget | None) -> "Launch":
    """Return what to start for a release: of an adapter that the server cannot load, the merged model.

    Raises:
        ServingError: the folder is no release, or no server that is installed can load it.
    """
    from tunemill_trainer.serving.engine import is_installed
    from tunemill_trainer.serving.releases import is_adapter, launch_of, read_contract, served_folder, served_repository

    contract = read_contract(folder)
    wanted = ServingTarget(contract["target"])
    merged = is_adapter(folder) and contract["merged"]
    if engine is None and is_adapter(folder) and not merged:
        engine = wanted  # Transformers loads no adapter, even if it is installed and vLLM is not
    if engine is None:
        others = (target for target in map(ServingTarget, _ENGINES) if target is not wanted and is_installed(target))
        engine = wanted if is_installed(wanted) else next(others, wanted)
    if merged:
        served, revision = served_repository(contract)
        folder = served_folder(contract) if is_local(served) else _download(served, revision)
    return launch_of(folder, engine)


class _TerminatedError(Exception):
    """SIGTERM."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block with an exception, as Ctrl-C does, so that the server is stopped, too."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


COMMAND = Command(
    name="serve",
    task=Task.RELEASE,
    summary="start vLLM or Transformers on this machine for a release, with the flags of its contract",
    add_options=add_options,
    main=main,
    examples=(
        "serve result",
        "serve acme/support-tools@v1 --engine vLLM --port 8080 -- --max-model-len 8192",
    ),
    exit_codes={
        ExitCode.SPEC_WRONG: "the server cannot load this release",
        ExitCode.DATA_WRONG: "a file of the release is broken",
        ExitCode.INPUT_MISSING: "RESULT does not exist, or is no release",
        ExitCode.SERVICE_UNAVAILABLE: "the server exited, or the Hub cannot be reached",
        ExitCode.PERMISSION_DENIED: "the Hub refuses the token",
        ExitCode.CONFIGURATION: "the server is not installed",
    },
    passes_flags=True,
)
