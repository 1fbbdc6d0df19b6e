"""Checks of services and dev environments on any cluster: those that the image has the programs for."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import subprocess
import time

import pytest

from tests.live.desk import PATIENCE, Desk
from tests.live.field_checks import page, probe

# Read at once, as in test_cluster.py.
PROXY_IMAGE = os.environ.get("LAMBDACTL_TEST_PROXY_IMAGE", "")
SERVICE = """
type: service
name: {name}
image: {image}
port: 8931
replicas: 2
stop_duration: 1s
auth: {auth}
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
        text = SERVICE.format(name=name, image=desk.image, fail=fail, probes=PAGE, auth="false")
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
    gone(desk, "web")


def check_probes_beside_the_replicas(desk: Desk) -> None:
    name = desk.name("probed")
    (desk.folder / "word").write_text("well\n")
    probes = f"{PAGE}, {{type: http, url: /page, method: head, interval: 2s}}"
    (desk.folder / "probed.yml").write_text(
        SERVICE.format(name=name, image=desk.image, fail="", probes=probes, auth="false")
    )
    done = desk.run("apply", "-f", "probed.yml", "-y", rc=None)
    replicas = json.loads(desk.run("run", "get", name, "--json").stdout)["replicas"]
    desk.run("stop", name, "-y")
    if done.returncode:
        assert "in which the probes are asked, has no python3" in done.stderr, done.stderr
        pytest.skip(f"the image {desk.image} has no python3 (and apply said so)")
    assert [replica["probes"] for replica in replicas] == ["2/2", "2/2"]


def check_the_proxy_of_services(desk: Desk) -> None:
    if "no web server" in desk.run("apply", "-f", desk.task("token", probe()), "-y").stdout:
        pytest.skip(f"the image {desk.image} has no web server")
    if PROXY_IMAGE:
        desk = with_proxy_image(desk)
    name = desk.name("token")
    text = SERVICE.format(name=name, image=desk.image, fail="", probes=PAGE, auth="true")
    (desk.folder / "word").write_text("one\n")
    (desk.folder / "token.yml").write_text(text)
    done = desk.run("apply", "-f", "token.yml", "-y", rc=None)
    if done.returncode:
        assert "as `proxy_image` of the backend" in done.stderr, done.stderr
        assert not [item for item in desk.left_of_service("token") if not item.startswith("pods/")]
        pytest.skip("no image with haproxy (LAMBDACTL_TEST_PROXY_IMAGE names one), and apply said so")
    path = f"/proxy/services/main/{name}/"
    assert done.stdout == f"http://lambdactl-proxy.{desk.target.namespace}.svc:8780{path}\n"
    token = next((desk.folder / "state").glob(f"**/{name}.token")).read_text().strip()
    attached = desk.start("attach", name)
    assert attached.stdout is not None
    port = int(attached.stdout.readline().rstrip("/\n").rpartition(":")[2])
    assert [ask(port, "/page", key) for key in ("", "wrong", token)] == [401, 401, 200]
    assert ask(port, f"{path}page", token) == 200
    status = json.loads(desk.run("run", "get", name, "--json").stdout)
    assert (status["state"], status["path"], status["auth"], status["proxy"]) == ("running", path, True, "")
    desk.run("stop", name, "-y")
    attached.communicate(timeout=PATIENCE)
    gone(desk, "token")


def gone(desk: Desk, what: str) -> None:
    """Wait until nothing of a service is left."""
    deadline = time.monotonic() + PATIENCE
    while left := desk.left_of_service(what):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


def with_proxy_image(desk: Desk) -> Desk:
    """The same user with a configuration file, which names the image."""
    folder = desk.folder / "config" / "lambdactl"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(
        f"backends:\n- type: kubernetes\n  kubeconfig: {{filename: {desk.env['LAMBDACTL_KUBECONFIG']}}}\n"
        f"  namespace: {desk.target.namespace}\n  proxy_image: {PROXY_IMAGE}\n"
    )
    env = {key: value for key, value in desk.env.items() if key != "LAMBDACTL_KUBECONFIG"}
    return dataclasses.replace(desk, env=env)


def ask(port: int, path: str, token: str) -> int:
    """The status of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
    status = connection.getresponse().status
    connection.close()
    return status


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
