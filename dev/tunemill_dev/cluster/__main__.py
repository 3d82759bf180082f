"""`python -m tunemill_dev.cluster up|down|status|image|prune --name NAME`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tunemill_dev.cluster.cluster import DEFAULT_NAME, down, up
from tunemill_dev.cluster.console import ClusterError


def main() -> int:
    """Run one command; exit code 1 and one message when it fails."""
    options = _parser().parse_args()
    try:
        if options.command == "up":
            up(options.name)
        elif options.command == "down":
            down(options.name, purge=options.purge)
    except ClusterError as error:
        print(f"✗ {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("✗ Interrupted. The next `up` starts where this one stopped; `down` cleans up.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tunemill_dev.cluster", description="A local Kubernetes cluster")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {
        "up": "start the cluster, or make sure that it runs",
        "down": "stop the cluster and delete its objects; images are kept",
    }.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--name", default=DEFAULT_NAME, help=f"which cluster (default: {DEFAULT_NAME})")
        if name == "down":
            command.add_argument("--purge", action="store_true", help="delete the cluster's images too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
