"""Checks of task fields on any cluster: what the file brings along, reaches, and asks of the image."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.live.checks import two_nodes
from tests.live.desk import PATIENCE, Desk

_SERVER = """
commands:
  - |
    mkdir -p /tmp/web; echo hello from $DSTACK_RUN_NAME >/tmp/web/page; cd /tmp/web
    if command -v python3 >/dev/null; then exec python3 -m http.server 8931
    elif busybox httpd --help >/dev/null 2>&1; then exec busybox httpd -f -p 8931 -h /tmp/web
    else echo no web server; fi
"""


def page(port: int) -> str:
    """What the server of a run says at a local port; "" for as long as it says nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/page")
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def check_ports_while_attached(desk: Desk) -> None:
    name = desk.name("ports")
    if "no web server" in desk.run("apply", "-f", desk.task("ports", probe()), "-y").stdout:
        pytest.skip(f"the image {desk.image} has no web server")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        text = f"ports: ['{port}:8931']\n{_SERVER}"
        said = desk.run("apply", "-f", desk.task("ports", text), "-y", rc=2).stderr
        assert f"port {port} of this machine is taken; choose another one" in said
    attached = desk.start("apply", "-f", desk.task("ports", f"ports: ['*:8931']\n{_SERVER}"), "-y")
    assert attached.stderr is not None
    line = next(line for line in attached.stderr if "is port 8931 of" in line)
    found = re.search(rf"http://127\.0\.0\.1:(\d+) is port 8931 of {name}-0\.", line)
    assert found, line
    deadline = time.monotonic() + PATIENCE
    while (text := page(int(found.group(1)))) != f"hello from {name}\n":
        assert time.monotonic() < deadline, text
        assert attached.poll() is None, attached.communicate()
        time.sleep(0.2)
    desk.run("stop", name, "-y")
    attached.communicate(timeout=PATIENCE)
    desk.nothing_left("ports")


def probe() -> str:
    """Commands that only say whether the image has a web server."""
    return "commands: ['command -v python3 || busybox httpd --help 2>&1 | grep -q -- -h || echo no web server']"


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def check_files_and_a_repository_with_changes(desk: Desk) -> None:
    nodes = min(desk.nodes, 2)
    home = desk.folder / "bring"
    (home / "repo" / "deep").mkdir(parents=True)
    (home / "conf").mkdir()
    (home / "repo" / "main.sh").write_text("echo committed\n")
    (home / "repo" / ("long-" + "x" * 120)).write_text("a long name\n")
    git(home / "repo", "init", "-q")
    git(home / "repo", "add", ".")
    git(home / "repo", "commit", "-qm", "first")
    (home / "repo" / "main.sh").write_text("echo changed\n")
    (home / "repo" / "deep" / "new file").write_text("new\n")
    (home / "conf" / "run.sh").write_text("#!/bin/sh\necho it runs\n")
    (home / "conf" / "run.sh").chmod(0o755)
    (home / "conf" / "link").symlink_to("run.sh")
    (home / "large").write_bytes(os.urandom(1 << 20) * 40)
    digest = hashlib.sha256((home / "large").read_bytes()).hexdigest()
    text = f"""
nodes: {nodes}
files: ['bring/conf:/etc/project', 'bring/large:sub/large', 'bring/conf/run.sh:~/one.sh']
repos: [bring/repo]
commands:
  - pwd; cat main.sh 'deep/new file' long-*; ls .git/HEAD
  - test "$PWD" = "$DSTACK_REPO_DIR" && echo "id $DSTACK_REPO_ID"
  - /etc/project/run.sh; readlink /etc/project/link; ~/one.sh; sha256sum sub/large
"""
    done = desk.apply("bring", text, "--all")
    for rank in range(nodes):
        prefix = f"{rank}: " if nodes > 1 else ""
        lines = [line.removeprefix(prefix) for line in done.stdout.splitlines() if line.startswith(prefix)]
        assert lines[:5] == ["/lambdactl/data/work", "echo changed", "new", "a long name", ".git/HEAD"]
        assert lines[5].startswith("id repo-")
        assert lines[6:] == ["it runs", "run.sh", "it runs", f"{digest}  sub/large"]
    # One copy from here where the image has SSH, else one for each rank.
    others = (nodes - 1) * 40
    told = rf"sent 40MB, {others}MB from rank to rank\.|sent {40 * nodes}MB\." if others else r"sent 40MB\."
    assert re.search(told, done.stderr), done.stderr
    desk.nothing_left("bring")
    said = desk.apply("bring", "repos: [{path: /etc, local_path: bring/repo}]\ncommands: [ls]", rc=1).stderr
    assert "the repository cannot be checked out: /etc exists and is not empty" in said
    desk.nothing_left("bring")


def check_groups_with_different_resources(desk: Desk) -> None:
    two_nodes(desk)
    text = """
groups:
- commands: ['echo "rank $DSTACK_NODE_RANK of $DSTACK_NODES_NUM"; sleep 600']
- resources: {memory: 20MB..}
  commands: ['echo "rank $DSTACK_NODE_RANK of $DSTACK_NODES_NUM"; sleep 1; exit 7']
"""
    done = desk.apply("unlike", text, "--all", rc=7)
    assert {"0: rank 0 of 2", "1: rank 1 of 2"} <= set(done.stdout.splitlines())
    assert "failed: rank 1 on" in done.stderr
    desk.nothing_left("unlike")


CHECKS = [function for name, function in list(globals().items()) if name.startswith("check_")]
