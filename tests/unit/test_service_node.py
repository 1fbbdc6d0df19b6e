"""A service's supervisor with real replicas, probes and sessions on the node bed. The proxy itself is in the sandbox
tests; here is what it would be told."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambdactl.node import service_proxy, service_rules
from lambdactl.node.service_doc import Service
from lambdactl.node.service_proxy import Place
from tests.unit.node_bed import Refused, kill
from tests.unit.service_bed import ServiceBed
from tests.unit.test_node_contents import file, frames, receive, sha, tree
from tests.unit.test_service_plan import document


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.1.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[ServiceBed]:
    bed = ServiceBed(tmp_path, sys.executable, 3, free_port())
    yield bed
    bed.close()


def config(bed: ServiceBed) -> str:
    return (bed.etc / "services/web.cfg").read_text()


def test_a_service_lives_is_repaired_and_ends(bed: ServiceBed) -> None:
    first = bed.apply(replicas=2)
    assert first["summary"]["state"] == "starting"
    bed.start_supervisor()
    value = bed.ready()
    assert [(r["run_name"], r["host"], r["probes"]) for r in value["replicas"]] == [
        ("web-0", "n0", "1/1"), ("web-1", "n1", "1/1"),
    ]  # fmt: skip
    assert f"server r0 127.0.1.1:{bed.port} check\n" in config(bed)
    assert bed.nodes[1].call("status", run="web-1")["ranks"][0]["state"] == "running"

    # A killed replica leaves the rotation and comes back as another run.
    run = value["replicas"][0]["run_id"]
    kill(bed.replica(bed.nodes[0]))
    bed.wait(lambda value: value["replicas_ready"] == 1)
    again = bed.ready()
    assert again["replicas"][0]["run_id"] != run
    assert again["failures"]["0"]["count"] == 1

    # A killed supervisor harms nobody, and the next one goes on with the same runs.
    runs = {r["run_id"] for r in again["replicas"]}
    assert bed.supervisor is not None
    bed.supervisor.kill()
    bed.supervisor.wait()
    assert bed.status()["supervised"] is False
    bed.start_supervisor()
    bed.wait(lambda value: value["supervised"])
    assert {r["run_id"] for r in bed.ready()["replicas"]} == runs

    # One that answers with errors leaves, and is restarted when it goes on with that.
    bed.sick(1).touch()
    value = bed.wait(lambda value: any(r["state"] == "unready" for r in value["replicas"]))
    assert f"server r1 127.0.1.2:{bed.port} check disabled" in config(bed)
    value = bed.wait(lambda value: "1" in value["failures"])
    assert "GET /health answered 500" in value["failures"]["1"]["reason"]
    bed.sick(1).unlink()
    bed.ready()

    bed.ingress.call("service-stop", service="web")
    assert bed.supervisor is not None
    assert bed.supervisor.wait(30) == 100
    assert bed.status()["state"] == "stopped"
    assert not (bed.etc / "services/web.cfg").exists()
    bed.ingress.call("service-forget", service="web")
    assert bed.ingress.call("service-status", service=None)["services"] == []


def test_a_replicas_files_come_from_the_ingress_to_the_host_that_lacks_them(bed: ServiceBed) -> None:
    data = b"greeting\n"
    manifest = tree(file("", data))
    assert receive(bed.ingress, frames(manifest, data))[0] == 0
    hosts = bed.service()["hosts"]
    for host, node in zip(hosts, bed.nodes, strict=True):
        place = str(node.root / "greeting")
        host["job"]["script"] = f"test -s {place} && {host['job']['script']}"
        host["job"]["files"] = [{"manifest": sha(manifest), "path": place}]
    bed.apply(hosts=hosts)
    bed.start_supervisor()
    bed.ready()
    assert (bed.nodes[1].root / "greeting").read_bytes() == data
    assert not (bed.nodes[2].state / "blobs").exists()
    # The ingress keeps them although nothing names them any more but the service, and says so when they are gone.
    blob = bed.ingress.state / "blobs" / sha(manifest)
    os.utime(blob, (1, 1))
    bed.ingress.call("gc", keep=50)
    assert blob.exists()
    for node in bed.nodes:
        shutil.rmtree(node.state / "blobs", ignore_errors=True)
    kill(bed.replica(bed.nodes[1]))
    value = bed.wait(lambda value: "store any more" in str(value["failures"]))
    assert value["failures"]["1"]["reason"].endswith("apply the service again")


def test_an_update_and_one_that_is_taken_back(bed: ServiceBed) -> None:
    bed.apply()
    bed.start_supervisor()
    first = {r["run_id"] for r in bed.ready()["replicas"]}
    bed.apply("two")
    value = bed.wait(lambda value: value["update"]["state"] == "done")
    assert value["replicas_ready"] == 2
    assert not first & {r["run_id"] for r in value["replicas"]}
    bed.apply("bad", hosts=[{**h, "job": {**h["job"], "script": "exit 3"}} for h in bed.service("bad")["hosts"]])
    value = bed.wait(lambda value: value["update"]["state"] == "failed")
    assert "failed 3 times" in value["update"]["message"]
    assert "code 3" in value["update"]["message"]
    value = bed.ready()
    assert value["revision"] == value["wanted_revision"] == b"two".hex()


def test_a_taken_port_and_a_node_in_use(bed: ServiceBed) -> None:
    with socket.create_server(("127.0.1.1", bed.port)):
        bed.nodes[1].call("reserve", run_id="0" * 8 + "-0000-4000-8000-" + "0" * 12, run_name="train", owner="x")
        bed.apply(replicas=1, hosts=bed.service()["hosts"][:2])
        bed.start_supervisor()
        value = bed.wait(lambda value: value["failures"])
        assert f"port {bed.port} is taken by" in value["failures"]["0"]["reason"]
    bed.ready(1)
    bed.apply(replicas=2, hosts=bed.service()["hosts"][:2])
    value = bed.wait(lambda value: value["waiting"])
    assert "n1: the node is in use by run train of x" in value["waiting"][0]["message"]


def test_operations_refuse(bed: ServiceBed) -> None:
    for request in ({"service": None}, {"service": "../x"}, {"service": "nope"}):
        with pytest.raises(Refused):
            bed.ingress.call("service-stop", **request)
    with pytest.raises(Refused, match="not installed"):
        bed.nodes[1].call("service-apply", service=bed.service())
    (bed.etc / "models.map").write_text("m service-other\n")
    with pytest.raises(Refused, match="served by the service other"):
        bed.apply(model={"name": "m", "prefix": "/v1"})
    bed.apply()
    assert (bed.ingress.state / "services/web/token").stat().st_mode & 0o777 == 0o600
    assert bed.ingress.call("service-token", service="web")["token"]


def test_the_proxys_part_of_a_service() -> None:
    limits = [{"prefix": "/", "rps": 0.5}, {"prefix": "/api/", "rps": 2, "burst": 5, "header": "X-Key"}]
    service = Service(document(model={"name": "Org/M-1", "prefix": "/v1"}, rate_limits=limits))
    places = {0: Place("10.0.0.1", 8000, "ready"), 2: Place("fd00::1", 8000, "drain")}
    text = service_proxy.config(service, places, slots=4, etc="/etc/x", run="/run/x")
    assert "{ req.hdr(authorization),sha2(256),hex -m str -i -f /etc/x/auth/web }" in text
    assert "server r0 10.0.0.1:8000 check\n" in text
    assert "server r2 [fd00::1]:8000 check disabled\n" in text
    assert "server r3 192.0.2.1:9 check disabled\n" in text
    assert text.index("path_beg /api/") < text.index("path_beg / }")
    assert "sc_http_req_rate(0,limit-web-1) gt 25" in text
    assert "sc_http_req_rate(0,limit-web-0) gt 30" in text
    moved = service_proxy.config(service, {}, slots=4, etc="/etc/x", run="/run/x")
    assert service_proxy.structure(text) == service_proxy.structure(moved)
    open_one = Service(document(auth=False, strip_prefix=False))
    text = service_proxy.config(open_one, {}, slots=2, etc="/etc/x", run="/run/x")
    assert "authorization" not in text
    assert "set-path" not in text
    assert "tok" not in service_rules.token_hash("tok")


# HAProxy 2.6.12's answer; r0 serves, r1 was given an address and switched on at run time, r2 drains, r3 is off.
SHOWN = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state \
bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr \
srv_agent_port
7 service-web 1 r0 10.0.0.1 2 0 1 1 1 6 3 2 6 0 0 0 - 8000 - 0 0 - - 0
7 service-web 2 r1 10.0.0.2 2 4 1 1 0 1 0 1 6 0 0 0 - 8000 - 0 0 - - 0
7 service-web 3 r2 10.0.0.3 2 8 1 1 0 6 3 2 6 0 0 0 - 8000 - 0 0 - - 0
7 service-web 4 r3 192.0.2.1 0 5 1 1 2 1 0 0 14 0 0 0 - 9 - 0 0 - - 0

"""


def test_what_the_proxy_is_told() -> None:
    shown = service_proxy.servers_state(SHOWN)
    assert {slot: (p.ip, p.port, p.state) for slot, p in shown.items()} == {
        0: ("10.0.0.1", 8000, "ready"), 1: ("10.0.0.2", 8000, "ready"), 2: ("10.0.0.3", 8000, "drain"),
        3: ("192.0.2.1", 9, "maint"),
    }  # fmt: skip
    wanted = {0: Place("10.0.0.1", 8000, "drain"), 2: Place("10.0.0.9", 8000, "ready"), 3: Place("h", 1, "ready")}
    assert service_proxy.differences("web", wanted, shown) == [
        "set server service-web/r0 state drain",
        "set server service-web/r1 state maint",
        "shutdown sessions server service-web/r1",
        "set server service-web/r2 state maint",
        "set server service-web/r2 addr 10.0.0.9 port 8000",
        "set server service-web/r2 state ready",
        "set server service-web/r3 addr h port 1",
        "set server service-web/r3 state ready",
    ]
    assert service_proxy.differences("web", dict(shown), shown) == []
    stat = "# pxname,svname,qcur,qmax,scur\nservice-web,r0,0,0,3\nservice-web,BACKEND,0,0,3\nother,r1,0,0,1\n"
    assert service_proxy.connections(stat, "web") == {0: 3}
