"""Where the sandbox's base image comes from: a registry where one answers, else the machine's own mirror.

The engine is real and pulls from a fake registry; the node image is a few bytes here, because what is built on the base
is the same for both. test_sandbox.py and all other tests run on the base that this machine really has.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lambdactl import content
from lambdactl.sandbox import debootstrap, image
from lambdactl.sandbox.docker import docker
from tests.fakes.registry import FakeRegistry

pytestmark = pytest.mark.sandbox

Use = Callable[[FakeRegistry], None]


@pytest.fixture
def architecture(engine: None) -> str:
    return docker("version", "--format", "{{.Server.Arch}}").stdout.strip()


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Use]:
    """Lets the sandbox take a fake registry for Docker Hub, and a tiny node image; removes what was made."""
    made: list[str] = []
    folder = tmp_path / "sandbox"
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"ARG BASE\nFROM ${{BASE}}\nCOPY Dockerfile /{secrets.token_hex(6)}\n")
    answers = image.registry_answers

    def small(progress: image.Progress) -> None:
        progress("making a base image from the mirror")
        docker("build", "--quiet", "--tag", made[-1], "-", stdin="FROM scratch\nLABEL made=here\n")

    def use(registry: FakeRegistry) -> None:
        made.extend([registry.image, f"lambdactl-test-base:{secrets.token_hex(6)}"])
        monkeypatch.setattr(image, "REGISTRY_IMAGE", registry.image)
        monkeypatch.setattr(image, "registry_answers", lambda: answers(registry.url))
        monkeypatch.setattr(debootstrap, "tag", lambda: made[-1])
        monkeypatch.setattr(debootstrap, "make", small)
        monkeypatch.setattr(content, "path", lambda *_: folder)

    yield use
    for name in made:
        for tag in (name, f"{image.REPOSITORY}:{image.content_hash(folder, name)}"):
            docker("image", "rm", "--force", tag, check=False)


def test_a_registry_that_answers_gives_the_base(architecture: str, use: Use) -> None:
    said: list[str] = []
    with FakeRegistry(architecture) as registry:
        use(registry)
        tag = image.ensure("auto", said.append)
        assert said == [
            f"pulling the base image {registry.image}",
            f"building the node image {tag} from {registry.image}",
        ]
    assert image.exists(tag)
    assert image.ensure("registry", said.append) == tag, "what is built needs no registry any more"
    assert len(said) == 2


def test_an_image_by_its_name(architecture: str, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `--base ubuntu:24.04` names one."""
    said: list[str] = []
    with FakeRegistry(architecture) as registry:
        use(registry)
        monkeypatch.setattr(image, "REGISTRY_IMAGE", "debian:12")
        tag = image.ensure(registry.image, said.append)
    assert said[0] == f"pulling the base image {registry.image}"
    assert image.exists(tag)


def test_a_registry_that_refuses_is_told_and_the_mirror_serves(architecture: str, use: Use) -> None:
    said: list[str] = []
    with FakeRegistry(architecture, refuse=True) as registry:
        use(registry)
        tag = image.ensure("auto", said.append)
        assert said[0] == f"pulling the base image {registry.image}"
        assert said[1].startswith(f"The base image {registry.image} cannot be pulled: ")
        assert said[1].endswith("Trying debootstrap.")
        assert said[2] == "making a base image from the mirror"
    assert image.exists(tag)


def test_without_a_registry_nothing_is_asked_of_it(architecture: str, use: Use) -> None:
    said: list[str] = []
    with FakeRegistry(architecture) as registry:
        pass
    use(registry)
    tag = image.ensure("auto", said.append)
    assert said[0] == "making a base image from the mirror"
    assert image.exists(tag)
