"""What of a service file goes to the ingress, and what is refused there: one sentence each, with file and line."""

from __future__ import annotations

import json
import re
from typing import Any

from lambdactl.errors import SpecError
from lambdactl.spec import ServiceSpec, line_in

_REFERENCE = re.compile(r"\$\{\{\s*groups\b")
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9/._~!*'(),;:@&=+$-]{0,200}")
_PLAIN_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9/._:@+-]{0,200}")


def refuse_unsupported(service: ServiceSpec) -> None:
    """Refuse what needs a public gateway or another scheduler than a fleet has.

    Raises:
        SpecError: with what to write instead.
    """
    for name, wrong, text in _refusals(service):
        if wrong:
            raise SpecError(f"'{name}' {text}", filename=service.source.filename, line=line_in(service, name))


def _refusals(service: ServiceSpec) -> list[tuple[str, object, str]]:
    replicas = service.replicas
    model = service.model
    return [
        ("groups", service.groups, "of unlike replicas cannot be run by one service here; write a service for each."),
        ("scaling", service.scaling, "follows requests, but a fleet's hosts are there anyway; give 'replicas'."),
        ("replicas", replicas.min != replicas.max, "is a range, which needs scaling; give it one number."),
        ("gateway", service.gateway, "is not there on a fleet: the ingress is one of its hosts; remove it."),
        ("https", service.https, "needs a public name and certificate, which a fleet's ingress has not; remove it, and "
         "use `lambdactl attach` (encrypted by SSH) or a proxy of your own in front."),
        ("schedule", service.schedule, "starts a run by the clock, and a service runs until it is stopped; remove it."),
        ("max_duration", service.max_duration, "ends a run, and a service runs until it is stopped; remove it."),
        ("model", model and model.format != "openai", "is of format tgi, which is not translated here; use openai."),
        ("model", model and not (_PLAIN_MODEL.fullmatch(model.name) and _PLAIN_PATH.fullmatch(model.prefix)),
         "has characters that the proxy cannot route by; use letters, digits and /._:@+- in name and prefix."),
        ("rate_limits", any(not _PLAIN_PATH.fullmatch(limit.prefix) for limit in service.rate_limits),
         "has a prefix that the proxy cannot match; use letters, digits and /._~!*'(),;:@&=+$-."),
        ("probes", any(" " in (probe.url or "/") for probe in service.probes or ()),
         "has a url with a space; write it as %20."),
        ("commands", any(_REFERENCE.search(text) for text in service.commands),
         "refers to groups' addresses, which move with the replicas; reach them by the service's own path."),
    ]  # fmt: skip


def notices(service: ServiceSpec) -> list[str]:
    """What of the file changes nothing, a sentence each."""
    if service.retry is None:
        return []
    return [
        "`retry` changes nothing for a service: a replica that ends is started again, waits for a free node, and moves "
        "from a lost one, for as long as the service runs."
    ]


def document_parts(service: ServiceSpec) -> dict[str, Any]:
    """The parts of the service's document that come straight from the file."""
    model = service.model
    return {
        "port": service.port,
        "probes": probes(service),
        "auth": service.auth,
        "strip_prefix": service.strip_prefix,
        "model": None if model is None else {"name": model.name, "prefix": model.prefix},
        "rate_limits": [
            {"prefix": limit.prefix, "rps": limit.rps, "burst": limit.burst, "header": limit.key.header}
            for limit in service.rate_limits
        ],
    }


def probes(service: ServiceSpec) -> list[dict[str, Any]]:
    """The probes of the file; where it has none and serves a model, a chat completion of one token, as dstack asks."""
    if service.probes is None and service.model is not None:
        body = {"model": service.model.name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        url = service.model.prefix.rstrip("/") + "/chat/completions"
        headers = {"Content-Type": "application/json"}
        return [
            {"url": url, "method": "POST", "headers": headers, "body": json.dumps(body), "timeout": 30, "interval": 15}
        ]
    return [
        {
            "url": probe.url or "/",
            "method": ("post" if probe.body is not None and probe.method == "get" else probe.method or "get").upper(),
            "headers": {header.name: header.value for header in probe.headers},
            "body": probe.body,
            "timeout": probe.timeout,
            "interval": probe.interval,
            "ready_after": probe.ready_after,
            "until_ready": probe.until_ready,
        }
        for probe in service.probes or ()
    ]
