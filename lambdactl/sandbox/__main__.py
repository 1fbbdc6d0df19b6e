"""``python -m lambdactl.sandbox up|status|down``: the sandbox without the rest of the command line."""

from __future__ import annotations

import argparse
import sys

from lambdactl import sandbox
from lambdactl.errors import LambdactlError


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lambdactl.sandbox", description="A virtual cluster on this machine."
    )
    parser.add_argument("command", choices=("up", "status", "down"))
    parser.add_argument("--name", default="default")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--base", default="auto")
    options = parser.parse_args(argv)
    try:
        return _run(options)
    except LambdactlError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code


def _run(options: argparse.Namespace) -> int:
    if options.command == "down":
        sandbox.down(options.name, progress=print)
        return 0
    if options.command == "up":
        cluster = sandbox.up(options.name, options.workers, base=options.base, progress=print)
        print(cluster.fleet_file)
        return 0
    found = sandbox.status(options.name)
    for node in found.nodes:
        print(f"{node.name:12} {node.address:16} {node.state:10} {node.reason}".rstrip())
    if not found.exists:
        print(f"There is no sandbox {options.name}.")
    return 0 if found.ready else 1


if __name__ == "__main__":
    sys.exit(main())
