"""The checks of the live suite on the fake cluster, so that they are known to work before they meet a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.fakes.kube import FakeCluster, FakeNode
from tests.fakes.kube.process import usable
from tests.live import checks, field_checks, service_checks
from tests.live.desk import Desk, environment
from tests.unit.kube.bed import limited

ALL = [*checks.CHECKS, *field_checks.CHECKS, *service_checks.CHECKS]
pytestmark = pytest.mark.skipif(usable() is not None, reason=str(usable()))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("live")
    with FakeCluster([FakeNode("node-1"), FakeNode("node-2")], mode="process") as cluster:
        target = limited(cluster, folder)
        env = environment(folder, str(folder), LAMBDACTL_KUBECONFIG=str(folder / "kubeconfig"))
        found = Desk(folder, target, env, "any", fake=True)
        found.fleet()
        yield found


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.__name__.removeprefix("check_"))
def test_on_the_fake(desk: Desk, check: Callable[[Desk], None]) -> None:
    check(desk)
