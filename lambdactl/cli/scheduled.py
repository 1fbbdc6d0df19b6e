"""`lambdactl scheduled`, which the cluster's own pods call: no command for people."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def scheduled(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the schedule's Secret is mounted.")],
    index: Annotated[int, typer.Argument(metavar="INDEX", help="Which of its cron expressions has called.")],
) -> None:
    """Start a scheduled run now (called by the pods of its CronJobs)."""
    from lambdactl.cli import kube_fire

    sys.exit(kube_fire.run(folder, index))
