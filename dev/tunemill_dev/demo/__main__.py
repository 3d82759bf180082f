"""`python -m tunemill_dev.demo --cluster NAME`, or `--context NAME` for a cluster of your own."""

import argparse
import logging
import sys

from rich.console import Console
from rich.markup import escape

from tunemill_dev.cluster import ClusterError
from tunemill_dev.demo.story import OUTPUT, Story
from tunemill_dev.kubectl import CommandError
from tunemill_dev.places import attached, local
from tunemill_dev.testbed import NotReachedError

LOG = OUTPUT / "demo.log"


def main() -> int:
    """Tell the story; whatever goes wrong is said in a sentence, with the log that has the rest."""
    parser = argparse.ArgumentParser(prog="python -m tunemill_dev.demo", description="Shows a whole run.")
    parser.add_argument("--cluster", default="tunemill", help="the local cluster, started when it does not run")
    parser.add_argument("--context", default="", help="use the cluster of this kubectl context instead")
    options = parser.parse_args()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=LOG, filemode="w", level=logging.INFO, format="%(asctime)s %(message)s")
    console = Console()
    try:
        Story(console).tell(attached(options.context) if options.context else local(options.cluster))
    except (ClusterError, CommandError, NotReachedError) as error:
        logging.getLogger(__name__).error("%s", error)
        return _failed(console, str(error))
    except KeyboardInterrupt:
        return _failed(console, "Stopped. The run goes on in the cluster; `make demo` begins anew.")
    except Exception as error:  # the border to the user: a sentence here, the traceback in the log
        logging.getLogger(__name__).exception("the demo failed")
        return _failed(console, f"{type(error).__name__}: {error}")
    return 0


def _failed(console: Console, message: str) -> int:
    console.print(f"\n[red]✗[/] {escape(message)}", highlight=False, soft_wrap=True)
    console.print(f"[dim]What was done: {LOG}[/]", highlight=False, soft_wrap=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
