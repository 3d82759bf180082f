"""`python -m tunemill_dev.demo --cluster NAME`, or `--context NAME` for an existing cluster."""

import argparse
import logging
import sys

from rich.console import Console
from rich.markup import escape

from tunemill_dev.cluster import ClusterError
from tunemill_dev.demo.story import OUTPUT, Demo
from tunemill_dev.kubectl import CommandError
from tunemill_dev.places import attached, local
from tunemill_dev.testbed import NotReachedError

LOG = OUTPUT / "demo.log"


def main() -> int:
    """Run the demo. An error is printed as one message, with the path of the log that has the details."""
    parser = argparse.ArgumentParser(prog="python -m tunemill_dev.demo", description="Shows a whole run.")
    parser.add_argument("--cluster", default="tunemill", help="the local cluster, which is started if it does not run")
    parser.add_argument("--context", default="", help="use the cluster of this kubectl context instead")
    options = parser.parse_args()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=LOG, filemode="w", level=logging.INFO, format="%(asctime)s %(message)s")
    console = Console()
    try:
        Demo(console).run(attached(options.context) if options.context else local(options.cluster))
    except (ClusterError, CommandError, NotReachedError) as error:
        logging.getLogger(__name__).error("%s", error)
        return _failed(console, str(error))
    except KeyboardInterrupt:
        return _failed(console, "Stopped. The run continues in the cluster. `make demo` starts a new one.")
    except Exception as error:  # the user gets a message, the log gets the traceback
        logging.getLogger(__name__).exception("the demo failed")
        return _failed(console, f"{type(error).__name__}: {error}")
    return 0


def _failed(console: Console, message: str) -> int:
    console.print(f"\n[red]✗[/] {escape(message)}", highlight=False, soft_wrap=True)
    console.print(f"[dim]Log: {LOG}[/]", highlight=False, soft_wrap=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
