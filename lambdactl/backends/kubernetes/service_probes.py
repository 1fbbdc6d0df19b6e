"""The probes of a service file as Kubernetes' own: start-up, readiness and liveness. Pure.

That is for one plain GET, and for none at all; service_prober.py is for the others.

Until the first success the start-up probe asks every second, as on SSH fleets; from then on the readiness probe takes a
replica out of the rotation at its first failure, and the liveness probe restarts it at the third in a row.
Source: https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes/
"""

from __future__ import annotations

import re
from typing import Any

from lambdactl.run.service_file import probes
from lambdactl.spec import ServiceSpec

FAILURES_TO_RESTART = 3
CONNECTION_INTERVAL = 2
_HIDDEN = re.compile(r"auth|cookie|key|token|secret|password", re.I)


def needs_prober(service: ServiceSpec) -> bool:
    """Whether the probes are more than one plain GET or a connection, which is all that a kubelet can ask."""
    if service.probes is None:
        return service.model is not None
    return len(service.probes) > 1 or any(
        probe.method not in (None, "get")
        or probe.body is not None
        # Everybody could read it in the Deployment.
        or any(_HIDDEN.search(header.name) for header in probe.headers)
        # Its start-up probe takes the first success.
        or (probe.until_ready and (probe.ready_after or 1) > 1)
        for probe in service.probes
    )


def container_probes(service: ServiceSpec, *, ready_timeout: float) -> dict[str, Any]:
    """startupProbe, readinessProbe and livenessProbe of a replica's container."""
    ask, interval, timeout, ready_after, until_ready = _wanted(service)
    starting = {
        **ask,
        "periodSeconds": 1,
        "timeoutSeconds": timeout,
        "failureThreshold": max(1, int(ready_timeout)),
    }
    if until_ready:
        return {"startupProbe": starting}
    again = {**ask, "periodSeconds": interval, "timeoutSeconds": timeout}
    return {
        "startupProbe": starting,
        "readinessProbe": {**again, "failureThreshold": 1, "successThreshold": ready_after},
        "livenessProbe": {**again, "failureThreshold": FAILURES_TO_RESTART},
    }


def _wanted(service: ServiceSpec) -> tuple[dict[str, Any], int, int, int, bool]:
    """What to ask, how often, for how long, how many successes make it ready, and whether to stop asking then."""
    if service.probes:
        probe = service.probes[0]
        get: dict[str, Any] = {"path": probe.url or "/", "port": service.port}
        if probe.headers:
            get["httpHeaders"] = [{"name": header.name, "value": header.value} for header in probe.headers]
        return (
            {"httpGet": get},
            probe.interval or 15,
            probe.timeout or 10,
            probe.ready_after or 1,
            bool(probe.until_ready),
        )
    return {"tcpSocket": {"port": service.port}}, CONNECTION_INTERVAL, 5, 1, False


def described(service: ServiceSpec, prober: str | None) -> str:
    """For the plan; `prober` is the image in which they are asked, where the kubelet does not ask itself."""
    asked = " and ".join(f"{probe['method']} {probe['url']}" for probe in probes(service))
    where = f", by a container beside each replica (image {prober})" if prober is not None else ""
    return (asked or "a connection to the port") + where
