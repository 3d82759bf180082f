"""Options of the commands that ask an OpenAI-compatible server."""

import argparse
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tunemill_api.failures import ExitCode, Reason

from tunemill_trainer.commands.command import JsonField
from tunemill_trainer.commands.option_types import positive_integer, positive_number
from tunemill_trainer.errors import StageError

if TYPE_CHECKING:
    from tunemill_trainer.serving.client import Client

_BASE_URL = "http://127.0.0.1:8000/v1"

EXIT_CODES: Mapping[int, str] = {
    ExitCode.SPEC_WRONG: "--tools or --api-key-env cannot be used, or the server refuses the request",
    ExitCode.INPUT_MISSING: "a file cannot be read, or the server has no such model",
    ExitCode.SERVICE_UNAVAILABLE: "the server cannot be reached, fails, or does not answer in time",
    ExitCode.PERMISSION_DENIED: "the server refuses the key",
}

JSON_FIELDS = (
    JsonField("endpoint.baseUrl", "string", "The server."),
    JsonField("endpoint.model", "string", "The model's name in requests."),
)


def add_server_options(command: argparse.ArgumentParser) -> None:
    """Declare which server is asked, and how."""
    command.add_argument(
        "--base-url",
        metavar="URL",
        default=_BASE_URL,
        help="the server's URL up to /v1; `tunemill serve` prints it (default: %(default)s)",
    )
    command.add_argument(
        "--model", metavar="NAME", default="", help="the model's name (default: the only one that the server lists)"
    )
    command.add_argument(
        "--api-key-env",
        metavar="VARIABLE",
        default="",
        help="the environment variable that holds the API key (default: no key is sent)",
    )
    command.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=positive_number,
        default=120.0,
        help="the longest wait for one reply (default: %(default)g)",
    )
    command.add_argument(
        "--max-tokens",
        metavar="NUMBER",
        type=positive_integer,
        help="the most tokens of a reply (default: the server's limit)",
    )
    command.add_argument(
        "--no-temperature",
        action="store_true",
        help="do not ask for greedy decoding with a temperature of 0, which some models refuse",
    )


def client_of(options: argparse.Namespace) -> "Client":
    """Return the client that the options describe.

    Raises:
        StageError: InvalidSpec, when the variable of --api-key-env is not set.
        ServingError: the server does not list exactly one model.
    """
    from tunemill_trainer.serving.client import Client

    key = ""
    if options.api_key_env:
        key = os.environ.get(options.api_key_env, "").strip()
        if not key:
            raise StageError(
                Reason.INVALID_SPEC,
                f"the environment variable {options.api_key_env} of --api-key-env is not set",
                "Set it to the API key.",
            )
    return Client(options.base_url, options.model, api_key=key, timeout=options.timeout)


def temperature_of(options: argparse.Namespace) -> float | None:
    """Return the temperature to ask for: 0, or none at all."""
    return None if options.no_temperature else 0.0


def endpoint_json(client: "Client") -> dict[str, str]:
    """Return the fields of `JSON_FIELDS`."""
    return {"baseUrl": client.base_url, "model": client.model}
