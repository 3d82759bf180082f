"""The command line: `tunemill-operator run …` and `tunemill-operator version`."""

import argparse
import asyncio
import os
import sys
from importlib.metadata import version

from tunemill_operator.app import run
from tunemill_operator.kube.access import AccessError
from tunemill_operator.settings import SettingsError, add_options, settings_of
from tunemill_operator.telemetry import logs


def main() -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="tunemill-operator", description="Operator for FunctionCallFineTunes.")
    commands = parser.add_subparsers(dest="command", required=True)
    add_options(commands.add_parser("run", help="run the operator until it is stopped"), os.environ)
    commands.add_parser("version", help="print the version")
    arguments = parser.parse_args()
    if arguments.command == "version":
        print(version("tunemill-operator"))
        return 0
    try:
        settings = settings_of(arguments)
        logs.configure(settings.log_format, settings.log_level)
        return asyncio.run(run(settings))
    except (SettingsError, AccessError) as error:
        print(f"tunemill-operator: {error}", file=sys.stderr)
        return 64
    except OSError as error:
        print(f"tunemill-operator: {error}", file=sys.stderr)
        return 71


if __name__ == "__main__":
    sys.exit(main())
