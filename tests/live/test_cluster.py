"""The checks on the cluster that KUBECONFIG names: `make test-k8s`."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lambdactl.backends.kubernetes.client import open_client
from lambdactl.backends.kubernetes.config import Target, targets
from lambdactl.backends.kubernetes.resources import NODES
from lambdactl.errors import LambdactlError
from tests.live import checks, field_checks, service_checks
from tests.live.desk import Desk, environment

ALL = [*checks.CHECKS, *field_checks.CHECKS, *service_checks.CHECKS]
# Read at once: the tests' own fixture takes the user's settings out of the environment.
KUBECONFIG = os.environ.get("KUBECONFIG", "")
IMAGE = os.environ.get("LAMBDACTL_TEST_IMAGE", "")
HOME = os.environ.get("HOME", "/root")
# Small public images with a shell, the best first, where no image is named and the nodes have one.
_KNOWN = ("lambdactl", "ubuntu", "debian", "alpine", "busybox", "python", "nginx")


def named_cluster() -> tuple[Target | None, str]:
    """The cluster, or why there is none."""
    if not KUBECONFIG:
        return None, "KUBECONFIG names no cluster"
    try:
        return targets(KUBECONFIG.split(os.pathsep)[0], environ={"HOME": HOME})[0], ""
    except LambdactlError as error:
        return None, str(error)


def common_image(target: Target) -> str | None:
    """An image with a shell that all nodes have already."""

    async def look() -> list[set[str]]:
        async with open_client(target, patience=10) as client:
            nodes = (await client.list(NODES)).items
        return [
            {name for image in (node.get("status") or {}).get("images") or () for name in image.get("names") or ()}
            for node in nodes
        ]

    names = set.intersection(*asyncio.run(look()))
    tagged = sorted(name for name in names if "@" not in name)
    for known in _KNOWN:
        for name in tagged:
            if re.search(rf"(^|/){known}(:|/|$)", name):
                return name
    return None


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    target, why = named_cluster()
    if target is None:
        pytest.skip(why)
    image = IMAGE or common_image(target)
    if not image:
        pytest.skip("LAMBDACTL_TEST_IMAGE names no image, and the nodes have no known one with a shell in common")
    folder = tmp_path_factory.mktemp("live")
    env = environment(folder, HOME, LAMBDACTL_KUBECONFIG=str(Path(KUBECONFIG.split(os.pathsep)[0]).resolve()))
    found = Desk(folder, target, env, image)
    found.fleet()
    version = asyncio.run(version_of(target))
    print(
        f"{version} at {target.name}, namespace {target.namespace}, {found.nodes} nodes that take pods, image {image}"
    )
    yield found
    found.tidy()


async def version_of(target: Target) -> str:
    async with open_client(target, patience=10) as client:
        return f"Kubernetes {(await client.version())['gitVersion']}"


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.__name__.removeprefix("check_"))
def test_live(desk: Desk, check: Callable[[Desk], None]) -> None:
    check(desk)
