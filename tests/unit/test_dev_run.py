"""A dev environment as a run: the task it becomes, its link, its exit code, and how it is shown."""

from __future__ import annotations

import pytest

from lambdactl import spec
from lambdactl.run import dev
from lambdactl.run.plan import join_commands
from lambdactl.run.status import combine


def parsed(more: str = "") -> spec.DevEnvironmentSpec:
    found = spec.loads(f"type: dev-environment\nname: box\n{more}", kind="dev-environment")
    assert isinstance(found, spec.DevEnvironmentSpec)
    return found


def test_it_is_a_task_of_one_node() -> None:
    task = dev.as_task(
        parsed("init: [one, two]\nsetup: [zero]\nenv: [A=1]\nmax_duration: 1h\nuser: me\nports: [8080]\n")
    )
    assert (task.type, task.nodes, task.name, task.max_duration, task.user) == ("task", 1, "box", 3600, "me")
    assert task.commands == ("zero", "one", "two", dev.UP, dev.IDLE)
    assert [(port.local_port, port.container_port) for port in task.ports] == [(8080, 8080)]
    assert task.env[0].name == "A"
    assert task.source.text.startswith("type: dev-environment")
    assert join_commands(task.commands).endswith("exec tail -f /dev/null\n")


def test_only_the_inactivity_limit_may_change_while_it_runs() -> None:
    first = dev.job_key(parsed("init: [a]\ninactivity_duration: 1h\n"))
    second = dev.job_key(parsed("init: [a]  # other words\ninactivity_duration: off\n"))
    assert (first["inactivity"], second["inactivity"]) == (3600, None)
    assert first["digest"] == second["digest"]
    assert dev.job_key(parsed("init: [b]\ninactivity_duration: 1h\n"))["digest"] != first["digest"]


@pytest.mark.parametrize(
    ("ide", "link"),
    [
        ("vscode", "vscode://vscode-remote/ssh-remote+box/data/a%20b"),
        ("cursor", "cursor://vscode-remote/ssh-remote+box/data/a%20b"),
        ("windsurf", "windsurf://vscode-remote/ssh-remote+box/data/a%20b"),
        ("zed", "zed://ssh/box/data/a%20b"),
        (None, None),
    ],
)
def test_the_link_opens_the_working_directory(ide: str | None, link: str | None) -> None:
    assert dev.link(ide, "box", "/data/a b") == link


def rank(**fields: object) -> dict[str, object]:
    base = {"run_id": "r", "run_name": "box", "rank": 0, "node": "n", "nodes_num": 1, "state": "running"}
    return {**base, "dev": {"ide": "zed", "directory": "/d", "user": "u", "sessions": 0, "host_key": "k"}, **fields}


def test_the_end_for_inactivity_is_no_failure() -> None:
    ended = {"state": "stopped", "reason": "inactivity", "message": "nobody", "finished_at": 1.0}
    status = combine([rank(gang=ended, **ended)])
    assert (status.state, status.reason, status.exit_code) == ("stopped", "inactivity", 0)
    asked = {"state": "stopped", "reason": "stopped-by-user"}
    assert combine([rank(gang=asked, **asked)]).exit_code == 130


def test_run_get_shows_the_link_and_not_the_nodes_own_words() -> None:
    shown = combine([rank()]).as_json()
    assert shown["dev"] == {
        "ide": "zed", "url": "zed://ssh/box/d", "user": "u", "directory": "/d", "inactivity": None, "up_at": None,
        "sessions": 0, "idle_since": None,
    }  # fmt: skip
    assert "dev" not in shown["ranks"][0]
    assert "dev" not in combine([rank(dev=None)]).as_json()
