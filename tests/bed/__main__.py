"""Hold a bed open: ``python -m tests.bed --nodes 32`` prints a fleet file and waits for Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys

import yaml

from tests.bed import Bed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bed", description=__doc__)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--jumps", type=int, default=1, help="length of the jump chain")
    parser.add_argument("--delay-ms", type=int, default=0, help="delay each way in front of the first jump host")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Bed(args.nodes, jumps=args.jumps, delay_ms=args.delay_ms) as bed:
        path = bed.directory / "bed.dstack.yml"
        path.write_text(yaml.safe_dump(bed.spec(), sort_keys=False))
        print(f"# {path}\n{path.read_text()}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
        print(f"# logins: jump {bed.jump_logins()}, nodes {sum(bed.node_logins().values())}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
