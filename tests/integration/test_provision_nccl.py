"""The role nccl_tests alone, on a node whose GPUs, CUDA and NCCL are fakes: what it builds, and what it refuses."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl import sandbox as sandboxes
from lambdactl.sandbox import Sandbox
from tests.integration.conftest import _up

pytestmark = pytest.mark.sandbox

ROOT = Path(__file__).resolve().parents[2]
FAKES = ROOT / "tests" / "fakes"
CONFIG = "/etc/fake-nvidia-smi.conf"
HOMES = {
    "nccl_tests_cuda_home": "/opt/fake/cuda",
    "nccl_tests_nccl_home": "/opt/fake/nccl",
    "nccl_tests_mpi_home": "/opt/fake/mpi",
}
PREPARE = (
    "mkdir -p /opt/fake/cuda/bin /opt/fake/nccl/include /opt/fake/nccl/lib /opt/fake/mpi/include"
    " && mv /opt/nvcc /opt/fake/cuda/bin/ && touch /opt/fake/nccl/lib/libnccl.so"
    " /opt/fake/mpi/include/mpi.h && echo '#define NCCL_VERSION_CODE 22602' > /opt/fake/nccl/include/nccl.h"
)
BINARY = "/opt/nccl-tests/build/all_reduce_perf"


@pytest.fixture(scope="module")
def node(engine: None) -> Iterator[Sandbox]:
    files = {"/usr/bin/nvidia-smi": FAKES / "nvidia-smi", "/opt/nvcc": FAKES / "cuda" / "bin" / "nvcc"}
    cluster = _up(workers=1, files=files)
    cluster.exec("worker-0", PREPARE, check=True)
    yield cluster
    sandboxes.down(cluster.name)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("source") / "nccl-tests.tar.gz"
    with tarfile.open(file, "w:gz") as packed:
        packed.add(FAKES / "nccl-tests-source", "nccl-tests-2.19.6")
    return file


@pytest.fixture
def play(node: Sandbox, tmp_path: Path) -> Any:
    def run(*options: str, **variables: Any) -> tuple[int, str, int]:
        """Exit code, output and number of changes of a playbook with just this role."""
        book, extra = tmp_path / "alone.yml", tmp_path / "variables.json"
        book.write_text("- hosts: all\n  gather_facts: false\n  roles:\n    - nccl_tests\n")
        extra.write_text(json.dumps({**HOMES, **variables}))
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        done = subprocess.run(
            [program, "-i", str(node.fleet_file), str(book), "-e", f"@{extra}", *options],
            capture_output=True, text=True, timeout=600, cwd=ROOT, stdin=subprocess.DEVNULL,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        )  # fmt: skip
        out = done.stdout + done.stderr
        return done.returncode, out, int(re.findall(r"changed=(\d+)", out)[-1])

    return run


def gpus(node: Sandbox, *lines: str) -> None:
    node.exec("worker-0", f"printf '%s\\n' {' '.join(repr(line) for line in lines)} > {CONFIG}", check=True)


def built(node: Sandbox) -> str:
    return node.exec("worker-0", BINARY).stdout.strip()


def test_without_a_gpu_there_is_nothing_to_do(node: Sandbox, play: Any) -> None:
    gpus(node, "FAKE_GPU_COUNT=0")
    rc, out, _ = play()
    assert rc == 0, out
    assert "worker-0 has no NVIDIA GPU, so there are no NCCL tests to build." in out
    assert node.exec("worker-0", "test -e /opt/nccl-tests").returncode != 0
    assert play()[2] == 0


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"nccl_tests_cuda_home": "/nowhere"}, "The CUDA compiler nvcc was not found. Remedy: "),
        (
            {"nccl_tests_nccl_home": "/nowhere"},
            "NCCL's header nccl.h or its library libnccl.so was not found. Remedy: ",
        ),
        ({"nccl_tests_archive": "/nowhere.tar.gz"}, "/nowhere.tar.gz does not exist on the controller. Remedy: "),
        (
            {"nccl_tests_url": "http://127.0.0.1:1/x.tar.gz"},
            "nccl_tests_url is set without nccl_tests_sha256. Remedy: ",
        ),
        ({"nccl_tests_version": "1.0"}, "The commit of nccl-tests 1.0 is not known to this role"),
    ],
)
def test_what_is_missing_is_one_sentence(node: Sandbox, play: Any, variables: dict[str, str], said: str) -> None:
    gpus(node, "FAKE_GPU_COUNT=8")
    rc, out, _ = play(**variables)
    assert rc == 2
    assert said in out


def test_a_compiler_that_does_not_know_the_gpu_is_refused(node: Sandbox, play: Any) -> None:
    gpus(node, "FAKE_GPU_CC=10.3")
    rc, out, _ = play()
    assert rc == 2
    assert "nvcc 12.8 cannot compile for compute capability 10.3, which needs CUDA 12.9 or newer." in out


def test_an_archive_is_built_for_the_gpus_that_are_there(node: Sandbox, play: Any, archive: Path) -> None:
    gpus(node, "FAKE_GPU_CC=10.0")
    rc, out, _ = play("--check", nccl_tests_archive=str(archive))
    assert rc == 0, out
    rc, out, changed = play(nccl_tests_archive=str(archive))
    assert rc == 0, out
    assert changed > 0
    assert "-gencode=arch=compute_100,code=sm_100 -DMPI_SUPPORT -I/opt/fake/mpi/include -L/opt/fake/nccl/lib" in built(
        node
    )
    assert play(nccl_tests_archive=str(archive))[2] == 0
    rc, out, changed = play("--check", "--diff", nccl_tests_archive=str(archive))
    assert (rc, changed) == (0, 0), out


def test_other_flags_build_again_and_need_no_gpu(node: Sandbox, play: Any, archive: Path) -> None:
    gpus(node, "FAKE_GPU_COUNT=0")
    rc, out, _ = play(nccl_tests_archive=str(archive), nccl_tests_gencode="-gencode=arch=compute_90,code=sm_90")
    assert rc == 0, out
    assert "compute_90" in built(node)


def test_a_corrupt_archive_installs_nothing(node: Sandbox, play: Any, archive: Path) -> None:
    before = built(node)
    rc, out, _ = play(
        nccl_tests_archive=str(archive),
        nccl_tests_sha256="0" * 64,
        nccl_tests_gencode="-gencode=arch=compute_80,code=sm_80",
    )
    assert rc == 2
    assert "has not the checksum nccl_tests_sha256" in out
    assert built(node) == before


@pytest.mark.parametrize("right", [False, True])
def test_a_mirror_is_checked(node: Sandbox, play: Any, archive: Path, right: bool) -> None:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(archive.parent))

        def log_message(self, *_: Any) -> None:
            pass

    gateway = node.exec("worker-0", "ip -4 route show default | cut -d' ' -f3", check=True).stdout.strip()
    with http.server.ThreadingHTTPServer(("0.0.0.0", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        rc, out, _ = play(
            nccl_tests_url=f"http://{gateway}:{server.server_port}/{archive.name}",
            nccl_tests_sha256=hashlib.sha256(archive.read_bytes()).hexdigest() if right else "0" * 64,
            nccl_tests_gencode="-gencode=arch=compute_89,code=sm_89",
        )
        server.shutdown()
    assert rc == (0 if right else 2), out
    assert ("compute_89" in built(node)) is right


def test_removal_takes_the_build_and_its_tools(node: Sandbox, play: Any) -> None:
    rc, out, changed = play(nccl_tests_state="absent")
    assert rc == 0, out
    assert changed > 0
    assert (
        node.exec("worker-0", "test -e /opt/nccl-tests || test -e /var/lib/lambdactl || command -v make").returncode
        != 0
    )
    assert play(nccl_tests_state="absent")[2] == 0


def test_a_build_that_is_there_already_is_kept(node: Sandbox, play: Any) -> None:
    gpus(node, "FAKE_GPU_COUNT=8")
    own = "mkdir -p /opt/nccl-tests/build && printf '#!/bin/sh\\necho mine\\n' > {0} && chmod 755 {0}"
    node.exec("worker-0", own.format(BINARY), check=True)
    rc, out, _ = play()
    assert rc == 0, out
    assert "so it is kept as it is" in out
    assert play(nccl_tests_state="absent")[0] == 0
    assert built(node) == "mine"
