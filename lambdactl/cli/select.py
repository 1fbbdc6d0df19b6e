"""Which fleet, and which run, a command means."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lambdactl import spec
from lambdactl.errors import LambdactlError, SpecError
from lambdactl.fleet import Fleet
from lambdactl.state import FleetRecord, State

if TYPE_CHECKING:
    from lambdactl.backends.kubernetes.fleet import KubeFleet


_KEY = re.compile(r"[a-z0-9-]{1,64}")


@dataclass(frozen=True)
class RunRef:
    """A run by the name or id that the user gave, the fleets it may be on, and its hosts where they are known."""

    key: str
    fleets: tuple[Fleet, ...]
    hosts: tuple[str, ...] | None = None


def choose_fleet(option: str | None, state: State, *, wanted: Sequence[str] = ()) -> Fleet:
    """The fleet for a new run: `--fleet`, the file's `fleets`, LAMBDACTL_FLEET, or the only one known.

    Args:
        option: a fleet file, or the name of a fleet that was applied from this machine.
        wanted: fleet names that the task file asks for.

    Raises:
        SpecError: none, or more than one, can be meant.
    """
    option = option or os.environ.get("LAMBDACTL_FLEET")
    if option:
        return _fleet(option, state)
    records = state.fleets()
    if wanted:
        for name in wanted:
            if record := state.fleet(name):
                return record.load()
        raise SpecError(
            f"the task asks for fleet {' or '.join(wanted)}, which was not applied from here; pass --fleet FILE."
        )
    if not records:
        raise SpecError(
            "no fleet is known here; run `lambdactl apply -f FLEET.dstack.yml` first, or pass --fleet FILE."
        )
    if len(records) > 1:
        names = ", ".join(sorted({record.name for record in records}))
        raise SpecError(f"several fleets are known here ({names}); choose one with --fleet NAME.")
    return records[0].load()


def known_fleets(option: str | None, state: State) -> list[Fleet]:
    """The fleets that a command without a file looks at: the one named, or all that are known.

    Raises:
        SpecError: none is known.
    """
    if option or os.environ.get("LAMBDACTL_FLEET"):
        return [choose_fleet(option, state)]
    fleets = [fleet for record in state.fleets() if (fleet := _usable(record)) is not None]
    if not fleets:
        raise SpecError("no fleet is known here; pass --fleet FILE, or apply a fleet file first.")
    return fleets


def locate_run(key: str, option: str | None, state: State) -> RunRef:
    """Where to ask for a run: the hosts that this machine submitted it to, else all hosts of the known fleets.

    Raises:
        SpecError: nothing can have that name, or no fleet is known.
    """
    if not _KEY.fullmatch(key):
        raise SpecError(f"{key!r} is neither a run's name (a-z, 0-9 and '-') nor its id.")
    record = state.run(key)
    if record is not None and not option and (fleet_record := state.fleet(record.fleet_id)):
        fleet = fleet_record.load()
        present = {host.name for host in fleet.hosts}
        hosts = tuple(host for host in record.hosts if host in present)
        if hosts:
            return RunRef(record.run_id, (fleet,), hosts)
    return RunRef(key, tuple(known_fleets(option, state)))


def not_found(key: str, state: State) -> LambdactlError:
    """The error for a run that no node knows, with the names that exist."""
    names = list(dict.fromkeys(run.name for run in state.runs()))[:8]
    known = f" Runs submitted from here: {', '.join(names)}." if names else ""
    return SpecError(f"no run named {key} is known on the nodes; `lambdactl ps -a` lists them.{known}")


def kubernetes_fleet(option: str | None, state: State) -> KubeFleet | None:
    """The fleet of a file or a known name (or LAMBDACTL_FLEET), where it is one of a Kubernetes backend.

    Raises:
        SpecError: the file is not valid, or no cluster is configured for it.
    """
    option = option or os.environ.get("LAMBDACTL_FLEET")
    record = state.fleet(option) if option and not Path(option).is_file() else None
    if not option or (record is None and not Path(option).is_file()):
        return None
    parsed = spec.load(option, kind="fleet") if record is None else record.spec
    if parsed.ssh_config is not None:
        return None
    from lambdactl.backends.kubernetes.fleet import KubeFleet

    return KubeFleet.from_spec(parsed, path=option if record is None else record.path)


def _fleet(option: str, state: State) -> Fleet:
    if Path(option).is_file():
        return Fleet.load(option)
    record = state.fleet(option)
    if record is None:
        names = ", ".join(sorted({known.name for known in state.fleets()})) or "none"
        raise SpecError(f"{option} is neither a fleet file nor a fleet known here (known: {names}).")
    return record.load()


def _usable(record: FleetRecord) -> Fleet | None:
    try:
        return record.load()
    except SpecError:
        return None
