"""`python -m tunemill_dev.cluster programs`, or `up|down|status|image|prune --name NAME`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tunemill_dev.cluster import binaries, prerequisites
from tunemill_dev.cluster.cluster import DEFAULT_NAME, running
from tunemill_dev.cluster.console import ClusterError, say, step
from tunemill_dev.cluster.lifecycle import down, ensure_programs, up
from tunemill_dev.cluster.report import status

_PROGRAMS = "build the programs of the cluster, and of the tests, where they are missing"
_COMMANDS = {
    "up": "start the cluster, or check that it runs",
    "down": "stop the cluster and delete its objects; images are kept for the next start",
    "status": "show what runs and the disk usage; exit code 1 if a component does not run",
    "image": "build an image for the cluster's pods and print its reference",
    "prune": "delete build caches and all but the newest image of each name",
}


def main() -> int:
    """Run a command. Return 1 and print one message if it fails."""
    options = _parser().parse_args()
    try:
        return _run(options)
    except ClusterError as error:
        print(f"✗ {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("✗ Interrupted. The next `up` continues from here; `down` cleans up.", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    match options.command:
        case "programs":
            prerequisites.check()
            with step("all programs"):
                ensure_programs()
                if options.use == "tests":
                    binaries.ensure(binaries.TESTED)
        case "up":
            up(options.name)
        case "down":
            down(options.name, purge=options.purge)
        case "status":
            well, text = status(options.name)
            say(text)
            return 0 if well else 1
        case "image":
            arguments = dict(pair.split("=", 1) for pair in options.build_arg)
            cluster = running(options.name)
            say(cluster.build_image(options.image, options.context, options.dockerfile, build_args=arguments))
        case "prune":
            with step("delete build caches and old images"):
                running(options.name).prune()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tunemill_dev.cluster", description="A local Kubernetes cluster")
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = {name: commands.add_parser(name, help=text, description=text) for name, text in _COMMANDS.items()}
    programs = commands.add_parser("programs", help=_PROGRAMS, description=_PROGRAMS)
    programs.add_argument("--use", choices=("cluster", "tests"), default="tests", help="whose (default: %(default)s)")
    for command in parsers.values():
        command.add_argument("--name", default=DEFAULT_NAME, help=f"name of the cluster (default: {DEFAULT_NAME})")
    parsers["down"].add_argument("--purge", action="store_true", help="delete the cluster's images too")
    image = parsers["image"]
    image.add_argument("image", help="name of the image, without registry and tag")
    image.add_argument("--context", type=Path, default=Path(), help="build context (default: current folder)")
    image.add_argument("--dockerfile", type=Path, required=True)
    image.add_argument("--build-arg", action="append", default=[], type=_pair, metavar="KEY=VALUE")
    return parser


def _pair(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} must have the form KEY=VALUE")
    return text


if __name__ == "__main__":
    sys.exit(main())
