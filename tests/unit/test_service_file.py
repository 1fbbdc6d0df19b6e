"""From a service file to the document of its ingress: what is refused, what is planned, what counts as a change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lambdactl import spec
from lambdactl.cli import apply, service_record, services
from lambdactl.cli.service_finding import replica_run
from lambdactl.errors import CapacityError, SpecError
from lambdactl.fleet import Fleet
from lambdactl.fleet.facts import NodeFacts
from lambdactl.node.service_doc import Service
from lambdactl.node.service_plan import Plan
from lambdactl.node.service_replica import describe, requests_to_start
from lambdactl.provision.services import choose_place
from lambdactl.run.plan import NodeView, Overrides
from lambdactl.run.service import ServiceOverrides, ServicePlan, make_service_plan
from lambdactl.run.service_control import ServiceStatus
from lambdactl.run.service_file import notices, probes

BASE = "type: service\nname: web\nport: 8000\ncommands: [serve]\n"


def parsed(more: str = "", text: str = BASE) -> spec.ServiceSpec:
    found = spec.loads(text + more, filename="web.dstack.yml")
    assert isinstance(found, spec.ServiceSpec)
    return found


def fleet(size: int = 2) -> Fleet:
    hosts = "".join(f"    - 10.0.0.{number + 1}\n" for number in range(size))
    found = spec.loads(f"type: fleet\nname: fl\nssh_config:\n  user: ubuntu\n  hosts:\n{hosts}", kind="fleet")
    assert isinstance(found, spec.FleetSpec)
    return Fleet.from_spec(found, path=None)


def views(size: int = 2, **problems: str) -> dict[str, NodeView]:
    found = {}
    for number in range(size):
        name = f"10.0.0.{number + 1}"
        addresses = [{"interface": "eth0", "address": name, "prefix": 24}]
        facts = NodeFacts.from_probe({"runner": "abc", "cpus": 4, "memory": 8 << 30, "addresses": addresses})
        problem = problems.get(f"h{number}")
        lease = [{"run_name": "train", "owner": "x"}]
        found[name] = NodeView(name, problem=problem) if problem else NodeView(name, facts, leases=lease)
    return found


def plan(more: str = "", size: int = 2, **problems: str) -> ServicePlan:
    overrides = ServiceOverrides(Overrides(env=(spec.parse_env_item("TOKEN=secret"),)))
    return make_service_plan(
        parsed(more), fleet(size), views(size, **problems), ingress="10.0.0.1", overrides=overrides
    )


@pytest.mark.parametrize(
    ("more", "line", "words"),
    [
        ("https: true\n", 5, "'https' needs a public name and certificate"),
        ("https: auto\n", 5, "`lambdactl attach`"),
        ("gateway: gw\n", 5, "'gateway' is not there on a fleet"),
        ("replicas: 1..3\nscaling: {metric: rps, target: 5}\n", 6, "'scaling' follows requests"),
        ("max_duration: 1h\n", 5, "'max_duration' ends a run"),
        ("schedule: {cron: '0 8 * * *'}\n", 5, "'schedule' starts a run by the clock"),
        ("model: {name: m, format: tgi}\n", 5, "is of format tgi"),
        ("model: 'a b'\n", 5, "characters that the proxy cannot route by"),
        ("rate_limits: [{prefix: '/%', rps: 1}]\n", 5, "prefix that the proxy cannot match"),
    ],
)
def test_what_a_fleet_cannot_do_is_refused_with_its_line(more: str, line: int, words: str) -> None:
    with pytest.raises(SpecError) as refused:
        plan(more)
    assert words in str(refused.value)
    assert f"web.dstack.yml:{line}" in str(refused.value)


def test_https_false_and_a_plain_range_are_fine() -> None:
    assert plan("https: false\ngateway: false\nreplicas: 2..2\n").replicas == 2


def test_the_document_is_what_the_ingress_takes() -> None:
    made = plan("replicas: 2\nmodel: Org/M\nrate_limits: [{prefix: /v1, rps: 2}]\n")
    service = Service(made.document)
    assert [(host.name, host.ip) for host in service.hosts] == [("10.0.0.1", "10.0.0.1"), ("10.0.0.2", "10.0.0.2")]
    assert service.probes[0].method == "POST"
    assert service.probes[0].url == "/v1/chat/completions"
    assert json.loads(service.probes[0].body or "")["model"] == "Org/M"
    state = Plan(service)
    ((_, item), _) = state.step(0.0)
    reserve, start = requests_to_start(service, service.hosts[0], item)
    assert reserve["run_name"] == start["job"]["run_name"] == "web-0"
    assert start["job"]["script"] == "serve\n"
    assert start["job"]["env"] == {"TOKEN": "secret"}
    assert start["job"]["service"] == {"name": "web", "replica": 0, "port": 8000}
    assert len(start["job"]["nodes"]) == 1
    assert "secret" not in json.dumps(describe(state, {}, "", 0.0, final=False))


def test_only_what_a_replica_does_makes_another_revision() -> None:
    revision = plan().document["revision"]
    same = ("replicas: 2\n", "auth: false\n", "probes: [{type: http}]\n", "# a comment\n")
    assert {plan(more).document["revision"] for more in same} == {revision}
    for more in ("env: {A: b}\n", "working_dir: /tmp\n", "user: root\n"):
        assert plan(more).document["revision"] != revision


def test_too_few_hosts_are_named() -> None:
    with pytest.raises(CapacityError, match="each on a host of its own") as refused:
        plan("replicas: 2\n", h1="does not answer")
    assert "10.0.0.2 does not answer" in str(refused.value)
    with pytest.raises(CapacityError, match="3 replicas"):
        plan("replicas: 3\n")
    with pytest.raises(CapacityError, match="CPU"):
        plan("resources: {cpu: 64..}\n")


def test_probes_of_the_file() -> None:
    found = probes(parsed("probes:\n  - {type: http, url: /h, body: x, interval: 3s, ready_after: 2}\n"))
    assert found[0]["method"] == "POST"
    assert (found[0]["url"], found[0]["interval"], found[0]["ready_after"], found[0]["timeout"]) == ("/h", 3, 2, 10)
    assert probes(parsed("model: m\nprobes: []\n")) == []


def test_the_command_line_refuses(tmp_path: Path) -> None:
    file = tmp_path / "web.dstack.yml"
    file.write_text(BASE)
    with pytest.raises(SpecError, match="runs until it is stopped"):
        apply.run(str(file), apply.Options(yes=True, max_duration="1h"))
    with pytest.raises(SpecError, match="--ready-timeout must be"):
        apply.run(str(file), apply.Options(yes=True, ready_timeout="off"))
    with pytest.raises(SpecError, match="ingress nope is not a host of fl; it has"):
        choose_place("nope", fleet(), None, {}, None)  # type: ignore[arg-type]  # nothing of these is looked at before the refusal
    with pytest.raises(SpecError, match="needs a 'name'"):
        make_service_plan(parsed(text=BASE.replace("name: web\n", "")), fleet(), views(), ingress="10.0.0.1")


def status(**changes: Any) -> ServiceStatus:
    replica = {"replica": 0, "run_id": "id-0", "host": "a", "state": "ready", "probes": "1/1", "message": ""}
    base = {"name": "web", "state": "running", "replicas_wanted": 2, "replicas_ready": 1, "replicas": [replica]}
    rest = {"waiting": [{"replica": 1, "message": "waits"}], "update": {"state": "none", "message": ""}}
    return ServiceStatus(
        "a", {**base, **rest, "supervised": True, "ingress_port": 8780, "submitted_at": 1.0, **changes}
    )


def test_how_a_service_is_shown() -> None:
    (row,) = services.rows([("fl", status())])
    assert [str(cell) for cell in row[:7]] == [
        "web", "fl", "running", "1/2", "1/1", "a", ":8780/proxy/services/main/web/",
    ]  # fmt: skip
    assert row[-1] == "replica 1: waits"
    assert status(supervised=False).state == "unsupervised"
    assert status(state="stopped", supervised=False).final
    failed = status(update={"state": "failed", "message": "never ready"}, waiting=[])
    assert failed.trouble() == "the update was taken back: never ready"
    assert failed.as_json()["type"] == "service"
    assert replica_run(status(), None) == "id-0"
    assert replica_run(status(), 1) == "web-1"
    with pytest.raises(SpecError, match="replicas 0 to 1, not 2"):
        replica_run(status(), 2)


def test_tokens_are_kept_private_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = service_record.keep("f1", "web", "a", "tok")
    assert path is not None
    assert path.read_text() == "tok\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert service_record.is_known("web")
    assert not service_record.is_known("*")
    assert service_record.keep("f1", "web", "a", None) is None
    assert not path.exists()
    service_record.forget("f1", "web")
    assert not service_record.is_known("web")


def test_files_and_repositories_go_to_the_ingress_and_all_hosts_and_make_another_revision() -> None:
    from lambdactl.run.content import RunContent
    from lambdactl.run.tree import Tree

    def made(manifest: str) -> ServicePlan:
        content = RunContent(files=((Tree(manifest * 64, {}, 1, 1), "conf"),))
        service = parsed("files: ['conf:conf']\n")
        return make_service_plan(service, fleet(3), views(3, h1="is down"), ingress="10.0.0.3", content=content)

    first = made("a")
    assert [place["name"] for place in first.places] == ["10.0.0.3", "10.0.0.1"]
    assert first.places[0] == {"name": "10.0.0.3", "ip": "10.0.0.3", "ssh_user": "ubuntu", "ssh_port": 22}
    assert first.document["hosts"][0]["job"]["files"] == [{"manifest": "a" * 64, "path": "conf"}]
    assert first.document["revision"] != made("b").document["revision"]
    assert first.document["revision"] == made("a").document["revision"]


def test_a_retry_is_told_to_change_nothing() -> None:
    text = "type: service\nname: web\nport: 80\nimage: a\n"
    plain, retried = spec.loads(text, kind="service"), spec.loads(f"{text}retry: true\n", kind="service")
    assert isinstance(plain, spec.ServiceSpec)
    assert isinstance(retried, spec.ServiceSpec)
    assert notices(plain) == []
    assert "`retry` changes nothing for a service" in notices(retried)[0]
