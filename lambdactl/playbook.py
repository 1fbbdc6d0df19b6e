"""Running this project's playbooks through ansible-runner; the only module that touches it.

ansible-runner's known traps are handled here, so that callers need not know them: it turns host key checking off unless
told, merges left-over `env/` files into later runs, writes the environment into its artifacts, does not find
`ansible-playbook` when installed by pipx or uv, and its cancellation leaves ansible-core's workers behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lambdactl import content
from lambdactl.provision.explain import explain

GRACE = 15.0  # seconds that ansible-playbook has to end its workers after the first signal
FORKS = 32
_OWN_ACTIONS = ("lambdactl_probe", "lambdactl_submit")


@dataclass(frozen=True)
class Failure:
    """Why a host has failed: the task, the cause and the remedy, each one sentence or clause."""

    host: str
    step: str
    cause: str
    remedy: str

    @property
    def sentence(self) -> str:
        """Step, cause and remedy in one line, without the host."""
        return f"{self.step}: {self.cause} {self.remedy}"


@dataclass(frozen=True)
class HostStatus:
    """Ansible's recap of one host."""

    ok: int = 0
    changed: int = 0
    failed: int = 0
    unreachable: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class PlaybookResult:
    """How a playbook ended.

    Attributes:
        rc: ansible-playbook's exit code; 130 when it was cancelled.
        hosts: the recap by host.
        failures: one for each host that failed, in the order of failing.
        changed: hosts on which something changed (in check mode: would).
        results: the results of the actions lambdactl_probe and lambdactl_submit, in order.
        command: the ansible-playbook line that does the same.
        private_dir: ansible-runner's folder where it was asked to be kept and the playbook failed.
    """

    rc: int
    hosts: Mapping[str, HostStatus]
    failures: Sequence[Failure]
    changed: Sequence[str]
    results: Sequence[Mapping[str, Any]]
    command: str
    private_dir: Path | None = None


@dataclass
class _Events:
    """Collects from ansible-runner's events what the result needs; they are not written to disk."""

    on_step: Callable[[str, str], object] | None
    on_output: Callable[[str], object] | None
    pid: int | None = None
    failures: dict[str, Failure] = field(default_factory=dict)
    results: list[Mapping[str, Any]] = field(default_factory=list)
    stats: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __call__(self, event: Mapping[str, Any]) -> bool:
        """ansible-runner's event_handler; False keeps it from writing the event to a file."""
        self.pid = self.pid or event.get("pid")
        if self.on_output is not None and event.get("stdout"):
            self.on_output(str(event["stdout"]) + "\n")
        data = event.get("event_data") or {}
        kind, host, task = str(event.get("event", "")), str(data.get("host", "")), str(data.get("task", ""))
        if kind == "runner_on_start" and self.on_step is not None:
            self.on_step(host, task)
        elif kind in ("runner_on_ok", "runner_on_failed", "runner_on_unreachable"):
            self._result(kind, host, task, data)
        elif kind == "playbook_on_stats":
            self.stats = {name: data.get(name) or {} for name in ("ok", "changed", "failures", "dark", "skipped")}
        return False

    def _result(self, kind: str, host: str, task: str, data: Mapping[str, Any]) -> None:
        result = data.get("res")
        result = result if isinstance(result, Mapping) else {}
        if data.get("task_action") in _OWN_ACTIONS:
            self.results.append(result)
        if kind == "runner_on_ok" or data.get("ignore_errors"):
            return
        if {"step", "cause", "remedy"} <= result.keys():  # the action lambdactl_explain, after the failure itself
            self.failures[host] = Failure(host, str(result["step"]), str(result["cause"]), str(result["remedy"]))
            return
        known = explain(result)
        self.failures[host] = Failure(host, task, known.cause, known.remedy)

    def hosts(self) -> dict[str, HostStatus]:
        """The recap by host."""
        names = {"ok": "ok", "changed": "changed", "failed": "failures", "unreachable": "dark", "skipped": "skipped"}
        seen = dict.fromkeys(host for counted in self.stats.values() for host in counted)
        return {
            host: HostStatus(**{ours: self.stats[theirs].get(host, 0) for ours, theirs in names.items()})
            for host in seen
        }


def command_line(
    name: str,
    *,
    inventory: str | Path,
    limit: Sequence[str] | None = None,
    extra_vars: Mapping[str, Any] | None = None,
    check: bool = False,
    diff: bool = False,
) -> str:
    """The ansible-playbook line that does the same by hand; only variables that are plain flags are spelled out."""
    words = ["ansible-playbook", "-i", str(inventory), str(content.path("playbooks", f"{name}.yml"))]
    words += ["--limit", ",".join(limit)] if limit else []
    words += ["--check"] if check else []
    words += ["--diff"] if diff else []
    for key, value in (extra_vars or {}).items():
        shown = str(value).lower() if isinstance(value, bool) else "..."  # a value may be a secret
        words += ["-e", f"{key}={shown}"]
    return shlex.join(words)


def run_playbook(
    name: str,
    *,
    inventory: str | Path,
    limit: Sequence[str] | None = None,
    extra_vars: Mapping[str, Any] | None = None,
    check: bool = False,
    diff: bool = False,
    forks: int = FORKS,
    env: Mapping[str, str] | None = None,
    on_step: Callable[[str, str], object] | None = None,
    on_output: Callable[[str], object] | None = None,
    cancel: threading.Event | None = None,
    keep: bool = False,
) -> PlaybookResult:
    """Run `playbooks/<name>.yml` to its end and say how each host fared; never raises for a host.

    Args:
        inventory: a fleet file, or any inventory source.
        limit: only these hosts.
        extra_vars: they travel in a file of mode 0600, never on a command line.
        env: more environment for ansible-playbook, for example LAMBDACTL_BROKER.
        on_step: called with host and task as a task begins on a host, in this thread.
        on_output: called with pieces of Ansible's own output.
        cancel: when it is set, ansible-playbook is asked to end, then made to. In the main thread SIGINT and SIGTERM
            set it.
        keep: leave ansible-runner's folder when the playbook failed, for a look (it holds the environment: mode 0700).
    """
    cancel = cancel or threading.Event()
    events = _Events(on_step, on_output)
    with _private_dir() as folder, _signals(cancel):
        rc = _run(
            folder,
            events,
            cancel,
            playbook=str(content.path("playbooks", f"{name}.yml")),
            inventory=str(Path(inventory).absolute()),
            limit=",".join(limit) if limit else None,
            cmdline=_options(folder, extra_vars, check=check, diff=diff),
            forks=forks,
            envvars=_environment(env),
        )
        failed = rc != 0 and not cancel.is_set()
        kept = _keep(folder) if keep and failed else None
    hosts = events.hosts()
    still_failed = {host for host, status in hosts.items() if status.failed or status.unreachable}
    return PlaybookResult(
        rc=130 if cancel.is_set() and rc != 0 else rc,
        hosts=hosts,
        failures=[failure for host, failure in events.failures.items() if host in still_failed or not hosts],
        changed=[host for host, status in hosts.items() if status.changed],
        results=events.results,
        command=command_line(name, inventory=inventory, limit=limit, extra_vars=extra_vars, check=check, diff=diff),
        private_dir=kept,
    )


def preload() -> None:
    """Import what running a playbook needs (0.15 s); for a thread, while something else is waited for."""
    with contextlib.suppress(ImportError):  # whoever needs it will say so
        import ansible_runner  # noqa: F401 (whether it is there)


def _run(folder: Path, events: _Events, cancel: threading.Event, **arguments: Any) -> int:
    import ansible_runner

    runner = ansible_runner.run(
        private_data_dir=str(folder),
        project_dir=str(content.root()),
        settings={"pexpect_timeout": 1, "suppress_env_files": True, "fact_cache_type": ""},
        suppress_env_files=True,
        quiet=True,
        event_handler=events,
        cancel_callback=_Canceller(events, cancel),
        **arguments,
    )
    return int(runner.rc if runner.rc is not None else 1)


def _options(folder: Path, extra_vars: Mapping[str, Any] | None, *, check: bool, diff: bool) -> str | None:
    words = [*(["--check"] if check else []), *(["--diff"] if diff else [])]
    if extra_vars:
        words += ["-e", f"@{_write_private(folder / 'variables.json', extra_vars)}"]
    return shlex.join(words) or None


class _Canceller:
    """ansible-runner's cancel_callback, asked about once a second.

    ansible-runner kills the process group of ansible-playbook, but ansible-core's workers live in sessions of their own
    from 2.19 on, and would stay. A signal makes ansible-playbook end them; before 2.19 it does not, but there they are
    in its process group, and get the signal with it. The kill follows where that takes too long.
    """

    def __init__(self, events: _Events, cancel: threading.Event) -> None:
        self.events = events
        self.cancel = cancel
        self.asked_at: float | None = None

    def __call__(self) -> bool:
        if not self.cancel.is_set() or self.events.pid is None:
            return self.cancel.is_set()
        if self.asked_at is None:
            self.asked_at = time.monotonic()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.events.pid, signal.SIGTERM)
        return time.monotonic() - self.asked_at > GRACE


@contextlib.contextmanager
def _signals(cancel: threading.Event) -> Iterator[None]:
    """In the main thread SIGINT and SIGTERM set `cancel`; elsewhere whoever owns the main thread does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: cancel.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _private_dir() -> Iterator[Path]:
    """A fresh folder of mode 0700, on tmpfs where there is one; gone afterwards."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    place = runtime if runtime and os.access(runtime, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="lambdactl-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _keep(folder: Path) -> Path:
    kept = Path(tempfile.mkdtemp(prefix="lambdactl-failed-"))
    shutil.copytree(folder, kept, dirs_exist_ok=True)
    return kept


def _write_private(path: Path, values: Mapping[str, Any]) -> Path:
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
        json.dump(dict(values), file)
    return path


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    """What ansible-playbook gets on top of this process's environment."""
    return {
        # Installed by pipx or uv, only our own script is on PATH; ansible-playbook lies beside this interpreter.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "ANSIBLE_CONFIG": str(content.path("ansible.cfg")),
        "ANSIBLE_HOST_KEY_CHECKING": "True",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_FORCE_COLOR": "0",
        **(more or {}),
    }
