"""What run_playbook makes of ansible-runner's events, and real playbooks on this machine without any node."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from lambdactl import content, playbook
from lambdactl.playbook import Failure, HostStatus, command_line, run_playbook


def event(kind: str, host: str = "w1", task: str = "Step", **data: Any) -> dict[str, Any]:
    return {"event": kind, "pid": 42, "stdout": f"{kind}", "event_data": {"host": host, "task": task, **data}}


def collected(*events: dict[str, Any]) -> playbook._Events:
    found = playbook._Events(None, None)
    assert [found(one) for one in events] == [False] * len(events)
    return found


class TestEvents:
    def test_a_failure_is_explained(self) -> None:
        found = collected(event("runner_on_failed", res={"msg": "[Errno 28] No space left on device"}))
        assert found.failures["w1"].step == "Step"
        assert "No space is left" in found.failures["w1"].sentence

    def test_our_own_explanation_comes_after_and_wins(self) -> None:
        res = {"step": "Install", "cause": "It broke.", "remedy": "Mend it.", "msg": "..."}
        found = collected(
            event("runner_on_failed", res={"msg": "boom"}), event("runner_on_failed", task="Say what failed", res=res)
        )
        assert found.failures == {"w1": Failure("w1", "Install", "It broke.", "Mend it.")}
        assert found.failures["w1"].sentence == "Install: It broke. Mend it."

    def test_an_unreachable_host(self) -> None:
        message = "Failed to connect to the host via ssh: ssh: connect to host w1 port 22: Connection refused"
        found = collected(event("runner_on_unreachable", res={"msg": message, "unreachable": True}))
        assert "Nothing answers" in found.failures["w1"].cause

    def test_ignored_failures_are_none(self) -> None:
        assert not collected(event("runner_on_failed", ignore_errors=True, res={"msg": "x"})).failures

    def test_the_recap(self) -> None:
        found = collected(
            event("playbook_on_stats", ok={"w1": 3, "w2": 1}, changed={"w1": 1}, failures={}, dark={"w2": 1})
        )
        assert found.hosts() == {"w1": HostStatus(ok=3, changed=1), "w2": HostStatus(ok=1, unreachable=1)}

    def test_results_of_our_own_actions_are_kept(self) -> None:
        found = collected(
            event("runner_on_ok", task_action="lambdactl_submit", res={"lambdactl_submit": {"ok": True}}),
            event("runner_on_ok", task_action="debug", res={"msg": "x"}),
        )
        assert found.results == [{"lambdactl_submit": {"ok": True}}]

    def test_steps_and_output_are_passed_on(self) -> None:
        steps, output = [], []
        found = playbook._Events(lambda host, task: steps.append((host, task)), output.append)
        found(event("runner_on_start", task="Copy"))
        assert steps == [("w1", "Copy")]
        assert output == ["runner_on_start\n"]
        assert found.pid == 42


class TestCommandLine:
    def test_everything(self) -> None:
        line = command_line(
            "provision",
            inventory="my fleet.yml",
            limit=["a", "b"],
            extra_vars={"force": True, "secret": "s3"},
            check=True,
            diff=True,
        )
        path = content.path("playbooks", "provision.yml")
        assert (
            line == f"ansible-playbook -i 'my fleet.yml' {path} --limit a,b --check --diff -e force=true -e secret=..."
        )

    def test_the_least(self) -> None:
        assert command_line("facts", inventory="f.yml").endswith("playbooks/facts.yml")


class TestCancelling:
    def test_ansible_playbook_is_asked_first_and_killed_only_after_the_grace_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        signals: list[tuple[int, int]] = []
        clock = iter([100.0, 100.0, 105.0, 100.0 + playbook.GRACE + 1])
        monkeypatch.setattr(os, "killpg", lambda pid, number: signals.append((pid, number)))
        monkeypatch.setattr(playbook.time, "monotonic", lambda: next(clock))
        cancel, events = threading.Event(), playbook._Events(None, None)
        canceller = playbook._Canceller(events, cancel)
        assert canceller() is False
        cancel.set()
        events.pid = 42
        assert [canceller(), canceller(), canceller()] == [False, False, True]
        assert signals == [(42, 15)]

    def test_before_the_first_event_there_is_nobody_to_ask(self) -> None:
        cancel = threading.Event()
        cancel.set()
        assert playbook._Canceller(playbook._Events(None, None), cancel)() is True


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return tmp_path


def inventory(folder: Path) -> Path:
    """A fleet file whose host nobody answers for: a closed port of this machine."""
    file = folder / "closed.dstack.yml"
    file.write_text("type: fleet\nname: closed\nssh_config:\n  user: nobody\n  port: 1\n  hosts: [127.0.0.1]\n")
    return file


def test_an_unreachable_fleet_is_one_failure_with_cause_and_remedy(home: Path) -> None:
    result = run_playbook("provision", inventory=inventory(home), extra_vars={"canary": "s3cret-canary"})
    assert result.rc == 2
    (failure,) = result.failures
    assert failure.host == "127.0.0.1"
    assert failure.remedy
    assert "\n" not in failure.sentence
    assert result.hosts["127.0.0.1"].failed == 1
    assert "canary" not in result.command.replace("canary=...", "")


def test_nothing_is_left_behind(home: Path) -> None:
    run_playbook("facts", inventory=inventory(home))
    assert [path for path in home.iterdir() if path.name.startswith("lambdactl")] == []


def test_the_folder_can_be_kept_for_a_look(home: Path) -> None:
    result = run_playbook("facts", inventory=inventory(home), extra_vars={"canary": "s3cret-canary"}, keep=True)
    assert result.private_dir is not None
    assert stat.S_IMODE(result.private_dir.stat().st_mode) == 0o700
    variables = result.private_dir / "variables.json"
    assert stat.S_IMODE(variables.stat().st_mode) == 0o600
    holding = [
        p for p in result.private_dir.rglob("*") if p.is_file() and "s3cret-canary" in p.read_text(errors="replace")
    ]
    assert holding == [variables]


def test_a_wrong_fleet_file_says_so(home: Path) -> None:
    file = home / "wrong.dstack.yml"
    file.write_text("type: fleet\nname: wrong\nssh_config:\n  usr: x\n  hosts: [a]\n")
    output: list[str] = []
    result = run_playbook("facts", inventory=file, on_output=output.append)
    assert result.rc != 0
    assert "usr" in "".join(output)


def test_a_cancelled_playbook_leaves_no_process(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never says a word
        file = inventory(home)
        file.write_text(file.read_text().replace("port: 1", f"port: {silent.getsockname()[1]}"))
        cancel = threading.Event()
        result = run_playbook("facts", inventory=file, on_step=lambda *_: cancel.set(), cancel=cancel)
    assert result.rc == 130
    assert result.failures == []
    assert [line for line in processes() if str(file) in line] == []


def processes() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(errors="replace").replace("\0", " "))
    return found
