"""What one run costs a node, counted: modules that a start loads and compiles, forks and programs that it starts."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl import content
from lambdactl.node import docker_info, programs, provisioned
from lambdactl.node.docker_info import DockerInfo
from tests.unit.node_bed import PYTHONS, Bed, Node

# Starts the runner as `python -I -S runner.pyz` does, and notes what it and its forks do; forks keep audit hooks.
SPY = """
import os, sys, runpy, pkgutil
KINDS = ("import", "compile", "os.fork", "os.exec", "os.posix_spawn", "subprocess.Popen")
def hook(event, args, path=sys.argv[1]):
    if event in KINDS:
        text = "%s %s\\n" % (event, args[1] if event == "compile" else args[0] if args else "")
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)  # a fork closes what it did not open
        os.write(log, text.encode())
        os.close(log)
sys.argv = sys.argv[2:]
sys.addaudithook(hook)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# What costs milliseconds to load and what most starts do without.
HEAVY = {
    "asyncio", "typing", "dataclasses", "inspect", "subprocess", "tempfile", "shutil", "ctypes", "uuid", "platform",
    "hashlib", "argparse", "pathlib", "zipfile", "shlex", "threading", "datetime", "calendar", "logging", "random",
}  # fmt: skip
# What a session of the compiled runner does without as well.
LIGHT = {
    "enum",
    "re",
    "functools",
    "collections",
    "contextlib",
    "json",
    "socket",
    "selectors",
    "signal",
    "glob",
    "runpy",
}
UNUSED = ["cuda", "openmpi", "provisioned", "runner", "container_engines", "tools"]  # by a task without an image
LOOK = [{"op": "probe", "roles": {}, "without": UNUSED}, {"op": "status", "run": None}]


@pytest.fixture(params=PYTHONS, ids=lambda path: "py38" if "3.8" in path else "py")
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(tmp_path, request.param, 2)
    yield bed
    bed.close()


def spied(bed: Bed, node: Node, log: Path, *words: str) -> list[str]:
    return [bed.python, "-I", "-S", "-c", SPY, str(log), str(bed.runner), *words]


def events(log: Path, kind: str) -> list[str]:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return [line.partition(" ")[2] for line in lines if line.startswith(kind + " ")]


def look(bed: Bed, log: Path) -> None:
    """A session of the runner that answers what is asked before every run."""
    node = bed.nodes[0]
    lines = b"".join(json.dumps({"id": 1, **request}).encode() + b"\n" for request in LOOK)
    done = subprocess.run(spied(bed, node, log, "serve"), input=lines, env=node.env, capture_output=True)
    assert done.stdout.count(b'"ok":true') == len(LOOK), done


def test_a_look_before_a_run_loads_little_and_starts_nothing(bed: Bed, tmp_path: Path) -> None:
    look(bed, tmp_path / "log")
    assert not HEAVY & {name.partition(".")[0] for name in events(tmp_path / "log", "import")}
    own = [name for name in set(events(tmp_path / "log", "import")) if name.startswith("lambdactl.node.")]
    assert len(own) <= 25, sorted(own)
    for kind in ("os.fork", "os.exec", "subprocess.Popen", "os.posix_spawn"):
        assert events(tmp_path / "log", kind) == []


def compiled(bed: Bed, log: Path) -> set[str]:
    """The modules of the zipapp that a look has compiled."""
    log.unlink(missing_ok=True)
    look(bed, log)
    return {name for name in events(log, "compile") if str(bed.runner) in name}


def test_nothing_but_the_first_lines_is_compiled_at_a_start(bed: Bed, tmp_path: Path) -> None:
    node, log = bed.nodes[0], tmp_path / "log"
    assert len(compiled(bed, log)) > 10
    assert node.runner("compile").stdout == b"compiled\n"
    assert len(compiled(bed, log)) <= 1
    assert node.runner("compile").stdout == b""
    bed.finish(bed.start("true", size=1))


def install(bed: Bed, node: Node) -> Path:
    """As the role does; returns the program that sessions start."""
    folder = node.root / "opt/lambdactl"
    folder.mkdir(parents=True)
    bed.runner = folder / "runner.pyz"
    bed.runner.write_bytes(content.runner_zipapp())
    (folder / "runner.sha256").write_text(content.runner_sha256() + "\n")
    assert node.runner("compile").stdout == b"compiled\n"
    return node.state / "compiled/start.py"


def loaded(bed: Bed, node: Node, program: Path, *requests: dict[str, Any]) -> set[str]:
    """The modules that a session loads from start to end."""
    lines = b"".join(json.dumps({"id": 1, **request}).encode() + b"\n" for request in requests)
    argv = [bed.python, "-X", "importtime", "-I", "-S", str(program), "serve"]
    done = subprocess.run(argv, input=lines, env=node.env, capture_output=True)
    assert done.stdout.count(b'"ok":true') == len(requests), done
    return {line.rpartition("|")[2].strip() for line in done.stderr.decode().splitlines() if "import time:" in line}


def test_a_session_of_the_compiled_runner_loads_next_to_nothing(bed: Bed) -> None:
    node = bed.nodes[0]
    program = install(bed, node)
    manifests = {"op": "probe", "roles": {}, "without": ["cuda", "openmpi", "container_engines", "runner"]}
    for requests in ([], LOOK, [manifests]):
        modules = loaded(bed, node, program, *requests)
        assert "lambdactl.node.serve" in modules
        assert not (LIGHT | HEAVY) & {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("change", ["archive", "digest", "python", "writable"])
def test_the_compiled_runner_is_not_started_where_something_else_is_installed(bed: Bed, change: str) -> None:
    node = bed.nodes[0]
    program = install(bed, node)
    (file,) = program.parent.glob("*.*python*-*")
    if change == "archive":
        bed.runner.write_bytes(bed.runner.read_bytes() + b"\0\0")
    elif change == "digest":
        bed.runner.with_name("runner.sha256").write_text("0" * 64)
    elif change == "python":
        file.rename(file.with_name(file.name + "0"))
    else:
        file.chmod(0o666)
    assert "zipimport" in loaded(bed, node, program, *LOOK)
    assert "runpy" in loaded(bed, node, program, *LOOK)


def test_a_run_brings_the_compiled_runner_up_to_date(bed: Bed) -> None:
    node = bed.nodes[0]
    program = install(bed, node)
    program.write_text("exit(1)")
    bed.finish(bed.start("true", size=1))
    assert "runpy" not in loaded(bed, node, program, *LOOK)


@pytest.mark.parametrize("damage", ["cut", "writable", "empty"])
def test_damaged_compiled_code_is_not_used(bed: Bed, tmp_path: Path, damage: str) -> None:
    node = bed.nodes[0]
    node.runner("compile")
    (file,) = (node.state / "compiled").iterdir()
    if damage == "writable":
        file.chmod(0o666)
    else:
        file.write_bytes(file.read_bytes()[: 1000 if damage == "cut" else 0])
    assert len(compiled(bed, tmp_path / "log")) > 10


def test_code_of_another_runner_makes_way_at_the_next_run(bed: Bed) -> None:
    node = bed.nodes[0]
    node.runner("compile")
    (file,) = (node.state / "compiled").iterdir()
    old = file.with_name("0" * 64 + ".cpython-38-0")
    file.rename(old)
    bed.finish(bed.start("true", size=1))
    assert file.exists()


def test_a_rank_is_one_program_and_few_forks(bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` forks the guard (and what is between them), the guard forks the rank, and the rank the job."""
    for number, node in enumerate(bed.nodes):
        words = [bed.python, "-I", "-S", "-c", SPY, str(tmp_path / f"log{number}"), str(bed.runner)]
        monkeypatch.setattr(node, "argv", lambda *args, words=words: [*words, *args])
    bed.finish(bed.start("exec sleep 0"))
    bed.until(bed.runs[0], 1, lambda value: value["finished_at"])
    bed.no_runner(bed.runs[0])
    programs = [{Path(name.strip("b'")).name for name in events(tmp_path / f"log{n}", "os.exec")} for n in (0, 1)]
    assert programs == [{"bash", "env"}, {"bash"}]  # rank 0 starts the agent of its peer, here by env
    assert [len(events(tmp_path / f"log{number}", "os.fork")) for number in (0, 1)] == [5, 4]
    for number in (0, 1):
        assert HEAVY & set(events(tmp_path / f"log{number}", "import")) <= {"ctypes", "shlex"}
        assert events(tmp_path / f"log{number}", "subprocess.Popen") == []


def test_what_a_start_needs_is_loaded_before_it_is_asked_for(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a session that was told what comes next, after its answer; the forks of a start find it there."""
    node, log = bed.nodes[1], tmp_path / "log"
    words = [bed.python, "-I", "-S", "-c", SPY, str(log), str(bed.runner)]
    monkeypatch.setattr(node, "argv", lambda *args: [*words, *args])
    node.call("status", run=None, next="start")
    node.call("status", run=None)  # answered when the session has done what it does after the one before
    assert "lambdactl.node.rank" in events(log, "import")
    log.unlink()
    run = bed.start("exec sleep 0")
    bed.until(run, 1, lambda value: value["finished_at"])
    bed.no_runner(run)
    assert [name for name in events(log, "import") if name.startswith("lambdactl.")] == []


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="a program that only Debian and its children have")
def test_the_packages_are_asked_for_once_while_dpkg_changes_nothing(bed: Bed, tmp_path: Path) -> None:
    node = bed.nodes[0]
    manifest = {"role": "openmpi", "digest": "d", "verify": [{"package": "dpkg"}]}
    (node.state / "provisioned").mkdir(parents=True)
    (node.state / "provisioned/openmpi.json").write_text(json.dumps(manifest))
    line = json.dumps({"id": 1, "op": "probe", "roles": {"openmpi": "d"}}).encode() + b"\n"
    asked = []
    for number in range(2):
        log = tmp_path / f"log{number}"
        done = subprocess.run(spied(bed, node, log, "serve"), input=line, env=node.env, capture_output=True)
        assert json.loads(done.stdout)["result"]["provisioned"]["openmpi"]["current"] is True
        asked.append(sum("dpkg-query" in name for name in events(log, "subprocess.Popen")))
    assert asked == [1, 0]


def docker(folder: Path, answer: bytes | None) -> Path:
    """A socket of which one connection gets this answer, or where nobody listens."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "docker.sock"))
    if answer is not None:
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection, server:
                connection.recv(1000)
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
    return folder / "docker.sock"


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.0 500 No\r\n\r\n{}", b'HTTP/1.0 200 OK\r\n\r\n{"cut"', b"junk"])
def test_docker_is_asked_by_its_command_where_its_socket_gives_no_answer(tmp_path: Path, answer: bytes | None) -> None:
    info = DockerInfo(str(docker(tmp_path, answer)), ["/bin/echo", "told by the command"])
    assert info.result([]) == (0, "told by the command\n")


def test_docker_is_asked_at_its_socket(tmp_path: Path) -> None:
    path = docker(tmp_path, b'HTTP/1.0 200 OK\r\nServer: x\r\n\r\n{"ServerVersion": "27.0"}\n')
    assert DockerInfo(str(path), ["/bin/false"]).result([]) == (0, '{"ServerVersion": "27.0"}\n')


def test_docker_is_only_pinged_while_it_is_the_same_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_info, "PLACE", str(tmp_path / "answer.json"))
    monkeypatch.setattr(docker_info, "PID_FILE", str(tmp_path / "docker.pid"))
    monkeypatch.setattr(docker_info.paths, "STATE", str(tmp_path))
    address, asked = tmp_path / "docker.sock", []

    def ask(body: bytes, *, healthy: bool = True) -> tuple[int | None, str]:
        address.unlink(missing_ok=True)
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(address))
        server.listen()
        info = DockerInfo(str(address), ["/bin/echo", "told by the command"])
        connection = server.accept()[0]
        asked.append(connection.recv(4096).split()[1])
        connection.sendall((b"HTTP/1.0 200 OK" if healthy else b"HTTP/1.0 500 no") + b"\r\n\r\n" + body)
        connection.close()
        server.close()
        return info.result([])

    first, second = b'{"ServerVersion": "27.0"}', b'{"ServerVersion": "28.0"}'
    assert ask(first) == (0, first.decode())  # nobody knows which daemon this is
    (tmp_path / "docker.pid").write_text("1")
    assert ask(b'{"ServerErrors": ["x"]}') == (0, '{"ServerErrors": ["x"]}')
    assert ask(first) == ask(b"OK") == (0, first.decode())
    assert ask(b"", healthy=False) == (0, "told by the command\n")
    (tmp_path / "docker.pid").unlink()
    (tmp_path / "docker.pid").write_text("2")
    assert ask(second) == (0, second.decode())
    assert asked == [b"/info", b"/info", b"/info", b"/_ping", b"/_ping", b"/info"]


@pytest.mark.parametrize(
    ("script", "lasts"),
    [
        ('#!/bin/sh\nexec /usr/bin/env "$@"\n', True),
        ('#!/bin/sh\n# a comment\n\nexec /usr/bin/env "$@"\n', True),
        ('#!/bin/sh\nX=1\nexec /usr/bin/env "$@"\n', False),
        ('#!/bin/sh\nexec $TOOL/env "$@"\n', False),
        ('#!/bin/sh\nexec env "$@"\n', False),
        ("echo hello\n", False),
    ],
)
def test_a_wrapper_that_only_executes_is_as_good_as_its_program(tmp_path: Path, script: str, *, lasts: bool) -> None:
    wrapper = tmp_path / "nvcc"
    wrapper.write_text(script)
    env = str(Path("/usr/bin/env").resolve())
    assert programs.behind(str(wrapper)) == ([str(wrapper.resolve()), env] if lasts else [])


def test_a_wrapper_around_itself_is_no_end(tmp_path: Path) -> None:
    wrapper = tmp_path / "nvcc"
    wrapper.write_text(f'#!/bin/sh\nexec {wrapper} "$@"\n')
    assert programs.behind(str(wrapper)) == []


def test_an_installed_file_is_read_once_while_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provisioned, "DIGESTS", str(tmp_path / "digests.json"))
    monkeypatch.setattr(provisioned.paths, "STATE", str(tmp_path))
    file = tmp_path / "runner.pyz"
    file.write_bytes(b"one")
    read: list[str] = []
    whole = provisioned.sha256
    monkeypatch.setattr(provisioned, "sha256", lambda path: read.append(path) or whole(path))
    fresh = provisioned.known_sha256(str(file))
    assert not (tmp_path / "digests.json").exists()  # it was written a moment ago, and may be once more
    monkeypatch.setattr(provisioned, "SETTLED", -1.0)
    assert {provisioned.known_sha256(str(file)) for _ in range(3)} == {fresh}
    assert len(read) == 2
    before = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # who puts the time back is seen all the same
    assert provisioned.known_sha256(str(file)) != fresh
    with pytest.raises(FileNotFoundError):
        provisioned.known_sha256(str(tmp_path / "none"))
