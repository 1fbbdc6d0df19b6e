"""What the proxy reads, and that two who change it at the same time lose nothing of each other's."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from lambdactl import spec
from lambdactl.backends.kubernetes import proxy, proxy_objects, service_front
from lambdactl.backends.kubernetes.client import open_client
from lambdactl.backends.kubernetes.config import Target
from lambdactl.backends.kubernetes.errors import NotFound
from lambdactl.backends.kubernetes.fleet import KubeFleet
from lambdactl.backends.kubernetes.payload import container_file
from lambdactl.backends.kubernetes.proxy_config import (
    ETC,
    RUN,
    Front,
    common,
    door,
    finished,
    model_owner,
    names,
    wanted,
    with_service,
    without_service,
)  # fmt: skip
from lambdactl.backends.kubernetes.resources import DEPLOYMENTS, SECRETS
from lambdactl.backends.kubernetes.strays import strays
from tests.fakes.kube import FakeCluster, load_rules
from tests.fakes.kube.admission import validate
from tests.live.desk import FLEET
from tests.unit.kube.bed import RBAC
from tests.unit.kube.test_objects import VERSIONS
from tests.unit.service_bed import HAPROXY

FULL = """
name: web
image: any
port: 8000
model: {name: team/llm, format: openai, prefix: /api/}
rate_limits: [{prefix: /slow, rps: 0.5}, {prefix: /, rps: 4, key: {type: header, header: X-User}}]
"""


def front(text: str = FULL, name: str = "web") -> Front:
    found = spec.loads(f"type: service\n{text}", kind="service")
    assert isinstance(found, spec.ServiceSpec)
    return Front.of(name, found)


def file(text: str) -> spec.ServiceSpec:
    found = spec.loads(f"type: service\nname: aa\nimage: b\nport: 80\n{text}", kind="service")
    assert isinstance(found, spec.ServiceSpec)
    return found


def test_who_needs_the_proxy() -> None:
    assert wanted(file(""))
    assert not wanted(file("auth: false"))
    assert wanted(file("auth: false\nmodel: m"))
    assert wanted(file("auth: false\nrate_limits: [{prefix: /, rps: 1}]"))


def test_each_service_has_entries_of_its_own() -> None:
    one = with_service({}, front(), "10.96.0.7", "secret")
    both = with_service(one, front("name: bb\nimage: a\nport: 90\nauth: false", "cfg"), "fd00::1", None)
    assert names(both) == {"web", "cfg"}
    assert "server replicas 10.96.0.7:8000\n" in both["service.web"]
    assert "server replicas [fd00::1]:90\n" in both["service.cfg"]
    assert "secret" not in str(both)
    assert (door(both, "web"), door(both, "cfg"), door(both, "nobody")) == (20000, 20001, None)
    assert (model_owner(both, "team/llm"), model_owner(both, "team")) == ("web", None)
    assert without_service(both, "cfg") == one
    # Once more changes nothing, not even the door.
    assert with_service(both, front(), "10.96.0.7", "secret") == both
    done = finished(both, ["cfg"])
    assert sorted(done) == ["haproxy.cfg", "service.cfg", "version"]
    assert f"string {done['version']}\n" in done["haproxy.cfg"]
    assert finished(done, ["cfg"]) == done
    assert finished(without_service(done, "cfg"), [])["version"] != done["version"]


def test_what_the_proxy_needs_is_in_the_deployments_facts() -> None:
    found = front()
    facts = {"proxy": True, "front": json.loads(json.dumps(_facts()))}
    item = {"metadata": {"name": "web", "annotations": {"lambdactl.dev/service-facts": json.dumps(facts)}}}
    assert service_front.front_of(item) == found
    assert service_front.front_of({"metadata": {"name": "web"}}) is None


def _facts() -> dict[str, Any]:
    from lambdactl.backends.kubernetes.proxy_config import facts

    found = spec.loads(f"type: service\n{FULL}", kind="service")
    assert isinstance(found, spec.ServiceSpec)
    return facts(found)


@pytest.mark.skipif(HAPROXY is None, reason="needs HAProxy (scripts/bootstrap installs it)")
def test_haproxy_takes_it(tmp_path: Path) -> None:
    assert HAPROXY is not None
    data = finished(with_service({}, front(), "10.96.0.7", "secret"), ["web"])
    (tmp_path / "config").mkdir()
    for name, text in data.items():
        (tmp_path / "config" / name).write_text(text.replace(RUN, str(tmp_path / "run")))
    for folder in ("services", "auth"):
        (tmp_path / "run" / "etc" / folder).mkdir(parents=True)
    etc = tmp_path / "run" / "etc"
    shutil.copy(tmp_path / "config" / "haproxy.cfg", etc)
    shutil.copy(tmp_path / "config" / "service.web", etc / "services" / "web.cfg")
    shutil.copy(tmp_path / "config" / "auth.web", etc / "auth" / "web")
    shutil.copy(tmp_path / "config" / "model.web", etc / "models.map")
    argv = [HAPROXY, "-c", "-f", str(etc / "haproxy.cfg"), "-f", str(etc / "services")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_of_the_template_is_left_open() -> None:
    text = common("v")
    assert "{{" not in text
    assert "user haproxy" not in text
    assert f"map_str({ETC}/models.map,no-model)" in text


@pytest.mark.parametrize("shell", ["dash", "busybox"])
def test_a_container_without_haproxy_says_so(tmp_path: Path, shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"needs {shell} (scripts/bootstrap installs it)")
    argv = [program, "sh"] if shell == "busybox" else [program]
    script = tmp_path / "proxy.sh"
    script.write_text(container_file("proxy.sh"))
    env = {"PATH": str(tmp_path), "LAMBDACTL_PROXY": str(tmp_path), "LAMBDACTL_MESSAGE": str(tmp_path / "message")}
    done = subprocess.run([*argv, str(script)], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "the image has no haproxy in its PATH\n")
    assert (tmp_path / "message").read_text() == "start-failed: the image has no haproxy in its PATH"


def test_the_objects_fit_the_schema_and_the_restricted_level(cluster: FakeCluster, target: Target) -> None:
    owner = {"metadata": {"uid": "1"}}
    made = [
        proxy_objects.deployment("a"), proxy_objects.service(owner), proxy_objects.secret(owner, {}),
        service_front.policy(front(), {"metadata": {"name": "web", "uid": "2"}}),
    ]  # fmt: skip
    for version in VERSIONS:
        for item in made:
            kubernetes_validate.validate(item, version, strict=True)
    for item in made:
        validate(item)
    pod = made[0]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def put_service(cluster: FakeCluster, name: str, **facts: Any) -> None:
    """A service's Deployment, as far as the proxy looks at it."""
    labels = {"app.kubernetes.io/managed-by": "lambdactl", "lambdactl.dev/service": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": "any"}]}}
    cluster.put(
        {
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {
                "name": name, "labels": labels, "annotations": {"lambdactl.dev/service-facts": json.dumps(facts)},
            },
            "spec": {"paused": True, "selector": {"matchLabels": labels}, "template": template},
        }
    )  # fmt: skip


def held(cluster: FakeCluster) -> set[str]:
    found = cluster.get(SECRETS, "lambdactl-proxy")
    return names({key: base64.b64decode(text).decode() for key, text in (found or {"data": {}})["data"].items()})


def test_many_at_the_same_time_lose_nothing(cluster: FakeCluster, target: Target) -> None:
    services = [f"s{number}" for number in range(6)]
    for name in services:
        put_service(cluster, name)

    async def enter(name: str) -> None:
        async with open_client(target) as client:
            await proxy._make(client, "any")
            await proxy._edit(client, lambda data: with_service(data, front(name=name), "10.96.0.9", None))

    async def body() -> None:
        await asyncio.gather(*(enter(name) for name in services))

    asyncio.run(body())
    assert held(cluster) == set(services)
    found = cluster.get(SECRETS, "lambdactl-proxy")
    assert found is not None
    doors = {
        base64.b64decode(found["data"][f"service.{name}"]).decode().split("bind ")[1].split()[0] for name in services
    }
    assert len(doors) == len(services)
    # A service that somebody has removed by other means goes with the next change.
    cluster.remove(DEPLOYMENTS, "s0")

    async def leave() -> None:
        async with open_client(target) as client:
            await proxy.leave(client, "s1")
            assert cluster.get(DEPLOYMENTS, "lambdactl-proxy") is not None
            for name in services[2:]:
                await proxy.leave(client, name)

    asyncio.run(leave())
    assert held(cluster) == set()
    assert cluster.get(DEPLOYMENTS, "lambdactl-proxy") is None


def test_who_enters_while_the_last_one_leaves_keeps_the_proxy(cluster: FakeCluster, target: Target) -> None:
    put_service(cluster, "a")

    async def body() -> None:
        async with open_client(target) as client:
            await proxy._make(client, "any")
            data, found = await proxy._edit(client, lambda data: data)
            assert not names(data)
            await proxy._edit(client, lambda data: with_service(data, front(name="a"), "10.96.0.9", None))
            await proxy._remove(client, found)  # what was seen of it is not the newest any more
            assert held(cluster) == {"a"}
            assert cluster.get(DEPLOYMENTS, "lambdactl-proxy") is not None
            await proxy.leave(client, "a")
            with pytest.raises(NotFound):
                await proxy._edit(client, lambda data: data)

    asyncio.run(body())


def test_a_proxy_that_nobody_needs_is_left_over(
    cluster: FakeCluster, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMBDACTL_KUBECONFIG", str(tmp_path / "kubeconfig"))
    cluster.put(proxy_objects.deployment("any"))
    fleet = KubeFleet.from_spec(spec.loads(FLEET, kind="fleet"), path=None)  # type: ignore[arg-type]  # the file is a backend fleet's

    def titles() -> list[str]:
        return [stray.title for stray in asyncio.run(strays(fleet)).objects]

    assert titles() == ["deployments.apps/lambdactl-proxy"]
    put_service(cluster, "open", proxy=False)
    assert titles() == ["deployments.apps/lambdactl-proxy"]
    put_service(cluster, "web", proxy=True)
    assert titles() == []


def test_without_the_right_to_policies_there_is_none(cluster: FakeCluster, tmp_path: Path) -> None:
    rules = [rule for rule in load_rules(RBAC) if "networkpolicies" not in rule.resources]
    token = cluster.user("system:serviceaccount:default:poor", rules)
    poor: Target = cluster.target(tmp_path, token=token)

    async def body() -> bool:
        async with open_client(poor) as client:
            return await service_front.may_guard(client)

    assert asyncio.run(body()) is False
