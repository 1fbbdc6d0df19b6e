"""Checks of services and dev environments on any cluster: those that the image has the programs for."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time

import pytest

from tests.live.desk import PATIENCE, Desk
from tests.live.field_checks import page, probe

SERVICE = """
type: service
name: {name}
image: {image}
port: 8931
replicas: 2
stop_duration: 1s
files: ["word:/tmp/web/page"]
probes: [{probes}]
commands:
  - |
    cd /tmp/web
    {fail}
    if command -v python3 >/dev/null; then exec python3 -m http.server 8931
    else exec busybox httpd -f -p 8931 -h /tmp/web; fi
"""
PAGE = "{type: http, url: /page, interval: 2s}"


def check_a_service(desk: Desk) -> None:
    if "no web server" in desk.run("apply", "-f", desk.task("web", probe()), "-y").stdout:
        pytest.skip(f"the image {desk.image} has no web server")
    name = desk.name("web")

    def apply(word: str, fail: str = "", rc: int = 0) -> str:
        (desk.folder / "word").write_text(f"{word}\n")
        text = SERVICE.format(name=name, image=desk.image, fail=fail, probes=PAGE)
        (desk.folder / "web.yml").write_text(text)
        return desk.run("apply", "-f", "web.yml", "-y", rc=rc).stderr

    apply("one")
    attached = desk.start("attach", name)
    assert attached.stdout is not None
    port = int(attached.stdout.readline().rstrip("/\n").rpartition(":")[2])
    assert page(port) == "one\n"
    apply("two")
    assert page(port) == "two\n"
    assert f"The update of {name} was taken back: a replica on " in apply("three", fail="exit 3", rc=1)
    assert page(port) == "two\n"
    status = json.loads(desk.run("run", "get", name, "--json").stdout)
    assert (status["state"], status["replicas_ready"], status["update"]["state"]) == ("running", 2, "failed")
    assert name in desk.run("ps").stdout
    desk.run("logs", name)
    desk.run("stop", name, "-y")
    attached.communicate(timeout=PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while left := desk.left_of_service("web"):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


def check_probes_beside_the_replicas(desk: Desk) -> None:
    name = desk.name("probed")
    (desk.folder / "word").write_text("well\n")
    probes = f"{PAGE}, {{type: http, url: /page, method: head, interval: 2s}}"
    (desk.folder / "probed.yml").write_text(SERVICE.format(name=name, image=desk.image, fail="", probes=probes))
    done = desk.run("apply", "-f", "probed.yml", "-y", rc=None)
    replicas = json.loads(desk.run("run", "get", name, "--json").stdout)["replicas"]
    desk.run("stop", name, "-y")
    if done.returncode:
        assert "in which the probes are asked, has no python3" in done.stderr, done.stderr
        pytest.skip(f"the image {desk.image} has no python3 (and apply said so)")
    assert [replica["probes"] for replica in replicas] == ["2/2", "2/2"]


def check_a_dev_environment(desk: Desk) -> None:
    # The alias is written below HOME, which is nobody's own here.
    desk = dataclasses.replace(desk, env={**desk.env, "HOME": str(desk.folder)})
    name = desk.name("dev")
    text = (
        f"type: dev-environment\nname: {name}\nimage: {desk.image}\nide: zed\nworking_dir: /tmp\ninit: [echo ready]\n"
    )
    (desk.folder / "dev.yml").write_text(text)
    done = desk.run("apply", "-f", "dev.yml", "-y", "-d", rc=None)
    if done.returncode:
        assert "by which a dev environment is entered" in done.stderr, done.stderr
        pytest.skip(f"the image {desk.image} has no sshd (and apply said so)")
    assert f"Zed: zed://ssh/{name}/tmp\nSSH: ssh {name}\n" in done.stdout
    config = str(desk.folder / ".ssh" / "lambdactl" / "config")
    argv = ["ssh", "-F", config, "-o", "BatchMode=yes", name, "echo $DSTACK_RUN_NAME in $PWD"]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert said.stdout == f"{name} in /tmp\n", said.stderr
    assert json.loads(desk.run("run", "get", name, "--json").stdout)["dev"]["directory"] == "/tmp"
    desk.run("stop", name, "-y")
    desk.nothing_left("dev")


CHECKS = [function for name, function in list(globals().items()) if name.startswith("check_")]
