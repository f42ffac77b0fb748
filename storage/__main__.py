"""`python -m storage`: what an operator does to the database that `DATABASE_URL` names."""

from __future__ import annotations

import argparse
import os
import sys

from server.setting import SettingError
from server.settings import load
from storage import migrate
from storage.driver_errors import as_storage_error


def main() -> int:
    """0 when it is done; 1, with one sentence, when it cannot be."""
    parser = argparse.ArgumentParser(prog="python -m storage", description="Admin commands on DATABASE_URL.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("upgrade", help="bring the schema up to date; servers do this by themselves when they start")
    move = commands.add_parser("move", help="take the schema up or down to a revision")
    move.add_argument("revision", choices=["base", *migrate.revisions(), "head"])
    arguments = parser.parse_args()
    try:
        config = load(os.environ).storage
    except SettingError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        if arguments.command == "move":
            migrate.move(config, arguments.revision)
            print(f"{config.url} is at revision {arguments.revision}.")
        else:
            epoch = migrate.upgrade(config)
            print(f"{config.url} is up to date; its epoch is {epoch}.")
    except Exception as error:
        known = as_storage_error(error)
        if known is None:
            raise
        print(f"{config.url}: {known}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
