"""`python -m tunemill_dev.hub --port 8080 --data DIR --accounts FILE`: the Hub server as a process."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from aiohttp import web
from pydantic import ValidationError

from tunemill_dev.hub.accounts import AccountsFile
from tunemill_dev.hub.context import Hub
from tunemill_dev.hub.server import make_app
from tunemill_dev.hub.store import Store


def main() -> None:
    """Serve until SIGTERM, which lets requests finish."""
    parser = argparse.ArgumentParser(prog="python -m tunemill_dev.hub", description="A local Hugging Face Hub")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--data", type=Path, required=True, help="folder for repositories")
    parser.add_argument("--accounts", type=Path, required=True, help="JSON file of users and tokens, re-read on change")
    parser.add_argument(
        "--multipart-bytes", type=int, default=64 << 20, help="larger uploads come in parts of this size"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        accounts = AccountsFile(options.accounts)
    except OSError as error:
        parser.error(f"--accounts: {error}")
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, r['loc']))}: {r['msg']}" for r in error.errors(include_input=False))
        parser.error(f"--accounts {options.accounts}: {reasons}")
    # From the environment, because every process of the machine can read command lines.
    admin_token = os.environ.get("HUB_ADMIN_TOKEN", "")
    hub = Hub(Store(options.data), accounts, admin_token, options.multipart_bytes)
    web.run_app(make_app(hub), host=options.host, port=options.port, shutdown_timeout=5, access_log=None)


if __name__ == "__main__":
    main()
