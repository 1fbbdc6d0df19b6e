"""The probes of a service file as Kubernetes' own: start-up, readiness and liveness. Pure.

Until the first success the start-up probe asks every second, as on SSH fleets; from then on the readiness probe takes a
replica out of the rotation at its first failure, and the liveness probe restarts it at the third in a row.
Source: https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes/
"""

from __future__ import annotations

from typing import Any

from lambdactl.errors import SpecError
from lambdactl.spec import ServiceSpec, line_in

FAILURES_TO_RESTART = 3
CONNECTION_INTERVAL = 2
_HIDDEN = ("authorization", "cookie", "proxy-authorization", "x-api-key")


def refuse_probes(service: ServiceSpec) -> None:
    """Refuse what the kubelet cannot ask.

    Raises:
        SpecError: with what to write instead.
    """
    probes = service.probes or ()
    for wrong, text in (
        (len(probes) > 1, "are several, and Kubernetes asks one request of a replica; leave one."),
        (any(probe.method not in (None, "get") or probe.body is not None for probe in probes),
         "use another method than GET or a body, which the kubelet cannot send; use a path that answers GET."),
        (any(header.name.lower() in _HIDDEN for probe in probes for header in probe.headers),
         "have a header with a secret, which everybody could read in the Deployment; use a path that needs none."),
        (any(probe.until_ready and (probe.ready_after or 1) > 1 for probe in probes),
         "have 'until_ready' with 'ready_after', which Kubernetes cannot count together; remove one."),
    ):  # fmt: skip
        if wrong:
            raise SpecError(f"'probes' {text}", filename=service.source.filename, line=line_in(service, "probes"))


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
    if service.probes is None and service.model is not None:
        # dstack asks for a chat completion, which is a POST; servers that speak OpenAI's way list their models by GET.
        return (
            {"httpGet": {"path": f"{service.model.prefix.rstrip('/')}/models", "port": service.port}},
            15,
            30,
            1,
            False,
        )
    return {"tcpSocket": {"port": service.port}}, CONNECTION_INTERVAL, 5, 1, False


def described(service: ServiceSpec) -> str:
    """For the plan."""
    ask = _wanted(service)[0]
    return f"GET {ask['httpGet']['path']}" if "httpGet" in ask else "a connection to the port"
