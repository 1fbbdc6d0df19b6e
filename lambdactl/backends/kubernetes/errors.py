"""What the API answers when it refuses, as one sentence with a remedy and an exit code.

Exception tree::

    APIError                  exit 1    .status .reason .details: what the API said
    ├── Unauthorized          exit 4    401: the login has expired, or was never valid here
    ├── Forbidden             exit 4    403: a right is missing, or a policy of the namespace refuses the pod
    ├── Unavailable           exit 4    no connection, an untrusted certificate, 429, 500, 503, 504
    ├── NamespaceMissing      exit 2    404: the namespace itself
    ├── NotFound              exit 1    404: the object
    ├── AlreadyExists         exit 3    409 with the reason AlreadyExists
    ├── Conflict              exit 1    409: somebody else changed the object
    ├── QuotaExceeded         exit 3    403: a ResourceQuota or LimitRange of the namespace
    ├── Gone                  exit 1    410: the resourceVersion is too old (watches list again by themselves)
    ├── Invalid               exit 2    400, 422: the cluster does not take the object
    └── LogNotReady           exit 1    400: the container has not started
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lambdactl.errors import EXIT_CAPACITY, EXIT_UNREACHABLE, EXIT_USAGE, LambdactlError

RBAC_FILE = "docs/kubernetes/rbac.yaml"


class APIError(LambdactlError):
    """The API refused, or could not be asked.

    Attributes:
        status: the HTTP status; None where there was no answer.
        reason: the API's word for it, such as AlreadyExists.
        details: the API's ``details``.
        said: the API's own message.
    """

    status: int | None = None
    reason: str = ""
    said: str = ""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.details: Mapping[str, Any] = {}


class Unauthorized(APIError):
    """The login is not valid, or not any more."""

    exit_code = EXIT_UNREACHABLE


class Forbidden(APIError):
    """A right is missing, or a policy of the namespace refuses the pod."""

    exit_code = EXIT_UNREACHABLE


class Unavailable(APIError):
    """The API server cannot be reached, cannot be trusted, or has trouble of its own."""

    exit_code = EXIT_UNREACHABLE


class NotFound(APIError):
    """The object does not exist."""


class NamespaceMissing(NotFound):
    """The namespace does not exist."""

    exit_code = EXIT_USAGE


class Conflict(APIError):
    """The object was changed meanwhile."""


class AlreadyExists(Conflict):
    """An object of that name exists."""

    exit_code = EXIT_CAPACITY


class QuotaExceeded(APIError):
    """The namespace's quota does not allow it."""

    exit_code = EXIT_CAPACITY


class Gone(APIError):
    """The resourceVersion is too old: list again."""


class Invalid(APIError):
    """The cluster does not take the object as it is."""

    exit_code = EXIT_USAGE


class LogNotReady(APIError):
    """The container has not started, so there is no log yet."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked, for messages.

    Attributes:
        cluster: what people call the cluster.
        server: its URL.
        namespace: the request's namespace, or None.
        verb: the RBAC verb.
        resource: as kubectl writes it, such as ``jobs.batch`` or ``pods/log``.
        name: the object's name, or None.
    """

    cluster: str
    server: str
    namespace: str | None = None
    verb: str = ""
    resource: str = ""
    name: str | None = None

    @property
    def where(self) -> str:
        return f" in the namespace '{self.namespace}'" if self.namespace else ""


@dataclass(frozen=True, slots=True)
class _Rule:
    """One row: an answer (status, reason, pattern in the message) and the sentence that it becomes."""

    error: type[APIError]
    statuses: tuple[int, ...]
    pattern: str
    sentence: Callable[[re.Match[str], Asked], str]


_QUOTA = (
    r"exceeded quota: (?P<name>[^,\s]+)(?:, requested: (?P<asked>[^:]*?), used: (?P<used>.*?), limited: (?P<most>.*))?$"
)
_RULES: tuple[_Rule, ...] = (
    _Rule(
        QuotaExceeded, (403,), _QUOTA,
        lambda m, a: f"the quota '{m['name']}'{a.where} does not allow it: {_amounts(m)}; stop what is not needed "
        "(`lambdactl ps`), ask for less, or have the quota raised.",
    ),
    _Rule(
        QuotaExceeded, (403,), r"failed quota: (?P<name>[^:]+): must specify (?P<what>.+?)(?: for: .*)?$",
        lambda m, a: f"the quota '{m['name']}'{a.where} wants every pod to say its {m['what'].replace(',', ', ')}; "
        "give `cpu` and `memory` under `resources` in the task file.",
    ),
    _Rule(
        QuotaExceeded, (403,), r"(?P<what>(?:maximum|minimum) .+ is .+?, but .+)$",
        lambda m, a: f"a LimitRange{a.where} does not allow the pod: {m['what'].rstrip('.')}; change `resources`.",
    ),
    _Rule(
        Forbidden, (403,), r'violates PodSecurity "(?P<level>[^":]+)[^"]*": (?P<what>.+)$',
        lambda m, a: f"the namespace{_named(a)} allows only '{m['level']}' pods, which this one is not: "
        f"{m['what'].rstrip('.').replace('; ', ' and ')}; remove that from the task file, or have the label "
        "pod-security.kubernetes.io/enforce of the namespace set to 'privileged'.",
    ),
    _Rule(
        Forbidden, (403,), r"because it is being terminated",
        lambda m, a: f"the namespace{_named(a)} is being deleted; wait for the end of that, or use another one.",
    ),
    _Rule(
        Forbidden, (403,), r'looking up service account [^:]+: serviceaccounts? "(?P<name>[^"]+)" not found',
        lambda m, a: f"the service account '{m['name']}' does not exist{a.where}; have an administrator apply "
        f"{RBAC_FILE} there.",
    ),
    _Rule(
        Forbidden, (403,), r'cannot (?P<verb>\S+) resource "(?P<what>[^"]+)" in API group "(?P<group>[^"]*)"',
        lambda m, a: _missing_right(m["verb"], f"{m['what']}{'.' * bool(m['group'])}{m['group']}", m.string, a),
    ),
    _Rule(
        Forbidden, (403,), r'admission webhook "(?P<hook>[^"]+)" denied the request:? ?(?P<what>.*)$',
        lambda m, a: f"the cluster's policy {m['hook']} refuses it: {m['what'].rstrip('.') or 'no reason given'}; "
        "ask the cluster's administrators.",
    ),
    _Rule(
        Forbidden, (403,), r"(?P<what>.*)",
        lambda m, a: f"the cluster '{a.cluster}' does not allow to {a.verb} {a.resource}{a.where}: "
        f"{m['what'].rstrip('.') or 'no reason given'}; ask the cluster's administrators.",
    ),
    _Rule(
        Unauthorized, (401,), "",
        lambda m, a: f"the cluster '{a.cluster}' does not accept the login: its token or certificate has expired or "
        "belongs to another cluster; log in again, or download the kubeconfig again.",
    ),
    _Rule(
        NamespaceMissing, (404,), r'namespaces "(?P<name>[^"]+)" not found',
        lambda m, a: f"the namespace '{m['name']}' does not exist in the cluster '{a.cluster}'; create it with "
        f"`kubectl create namespace {m['name']}`, or name another one in the configuration.",
    ),
    _Rule(
        NotFound, (404,), r"could not find the requested resource|page not found",
        lambda m, a: f"the cluster '{a.cluster}' has no {a.resource}: {a.server} is not the API of a Kubernetes "
        "cluster, or of one that is too old; check the kubeconfig's server.",
    ),
    _Rule(
        NotFound, (404,), "",
        lambda m, a: f"{a.resource} '{a.name or ''}' does not exist{a.where}; it was deleted, or never made.",
    ),
    _Rule(
        AlreadyExists, (409,), r"already exists",
        lambda m, a: f"{a.resource} '{a.name or ''}' exists already{a.where}; delete it, or use another name.",
    ),
    _Rule(
        Conflict, (409,), "",
        lambda m, a: f"{a.resource} '{a.name or ''}'{a.where} was changed by somebody else meanwhile; try again.",
    ),
    _Rule(
        Gone, (410,), "",
        lambda m, a: f"what was known of {a.resource}{a.where} is too old to go on from; list again.",
    ),
    _Rule(
        LogNotReady, (400,), r"is waiting to start|is not available|PodInitializing|ContainerCreating|not found in pod",
        lambda m, a: f"the pod '{a.name or ''}' has no log yet, because its container has not started; wait for it.",
    ),
    _Rule(
        Invalid, (400, 422), r"(?P<what>.*)",
        lambda m, a: f"the cluster '{a.cluster}' does not take {a.resource} '{a.name or ''}': "
        f"{_shorten(m['what'])}; change what the file says of it.",
    ),
    _Rule(
        Unavailable, (429,), "",
        lambda m, a: f"the API server of '{a.cluster}' is overloaded (429); try again in a minute.",
    ),
    _Rule(
        Unavailable, (500, 502, 503, 504), r"(?P<what>.*)",
        lambda m, a: f"the API server of '{a.cluster}' has trouble of its own: {_shorten(m['what']) or 'no reason'}; "
        "try again, and tell the cluster's administrators if it stays so.",
    ),
)  # fmt: skip


def explain(status: int, answer: Mapping[str, Any], asked: Asked) -> APIError:
    """The error for an answer.

    Args:
        status: the HTTP status.
        answer: the API's Status object, as far as it is one.
        asked: what was asked.
    """
    said = str(answer.get("message") or "").strip()
    for rule in _RULES:
        if status in rule.statuses and (match := re.search(rule.pattern, said, re.DOTALL)):
            return _filled(rule.error(rule.sentence(match, asked)), status, answer, said)
    sentence = (
        f"the API server of '{asked.cluster}' answered {status} to {asked.verb} {asked.resource}: "
        f"{_shorten(said) or 'no reason given'}; try again."
    )
    return _filled(APIError(sentence), status, answer, said)


def explain_event(text: str, namespace: str | None = None) -> APIError | None:
    """The same for the text of an event, with which a controller reports that it may not create a pod.

    None where the text is not a refusal that is known.
    """
    asked = Asked("", "", namespace, "create", "pods")
    for rule in _RULES:
        if 403 in rule.statuses and rule.pattern != r"(?P<what>.*)" and (match := re.search(rule.pattern, text)):
            return _filled(rule.error(rule.sentence(match, asked)), 403, {"reason": "Forbidden"}, text)
    return None


def _filled(error: APIError, status: int, answer: Mapping[str, Any], said: str) -> APIError:
    error.status, error.said = status, said
    error.reason = str(answer.get("reason") or "")
    details = answer.get("details")
    error.details = details if isinstance(details, Mapping) else {}
    return error


def warming_up(refusal: APIError, asked: Asked) -> APIError:
    """The error for a missing right or login where the server has just started; any other refusal stays what it is."""
    if not isinstance(refusal, Unauthorized) and not re.search(r"cannot \S+ resource", refusal.said):
        return refusal
    sentence = (
        f"the API server of '{asked.cluster}' has just started and refuses to {asked.verb} {asked.resource}"
        f"{asked.where}, which it had allowed before ({_shorten(refusal.said) or refusal.status}); try again."
    )
    return _filled(Unavailable(sentence), refusal.status or 0, {"reason": refusal.reason}, refusal.said)


def unreachable(error: BaseException, asked: Asked) -> Unavailable:
    """The error for a request that got no answer: no route, no listener, no trust, no time."""
    kind, text = type(error).__name__, str(error)
    server = asked.server
    for pattern, sentence in _CONNECTION:
        if re.search(pattern, f"{kind}: {text}"):
            return Unavailable(sentence.format(server=server, cluster=asked.cluster))
    return Unavailable(
        f"the API server {server} of '{asked.cluster}' does not answer ({_shorten(text) or kind}); check the network, "
        "and the kubeconfig's server."
    )


_CONNECTION = (
    (
        r"SSLCertVerificationError.*(hostname|IP address) mismatch|Hostname mismatch|is not valid for",
        "the certificate of {server} is for another name; check the server in the kubeconfig, or set its "
        "'tls-server-name'.",
    ),
    (
        r"certificate has expired",
        "the certificate of {server} has expired; tell the cluster's administrators, and check this machine's clock.",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|CertificateError|self.signed",
        "the certificate of {server} is signed by an authority that the kubeconfig does not name; "
        "download the kubeconfig again (its 'certificate-authority-data').",
    ),
    (
        r"alert|tlsv1|TLSV1",
        "{server} does not accept the kubeconfig's client certificate; it has expired or belongs to another cluster: "
        "download the kubeconfig again.",
    ),
    (
        r"WRONG_VERSION_NUMBER|RECORD_LAYER|record layer",
        "{server} does not speak TLS; check the server in the kubeconfig (http or https, and the port).",
    ),
    (
        r"Name or service not known|nodename nor servname|No address associated|Temporary failure in name|gaierror|DNS",
        "the name of the API server {server} of '{cluster}' is not known; check the kubeconfig's server and this "
        "machine's network (VPN?).",
    ),
    (
        r"refused|Connect call failed",
        "the API server {server} of '{cluster}' refuses connections; check the kubeconfig's server and that the "
        "cluster runs.",
    ),
    (
        r"Timeout|timed out|unreachable|No route",
        "the API server {server} of '{cluster}' does not answer in time; check the network (VPN, firewall: port 443 or "
        "6443) and that the cluster runs.",
    ),
)


def _missing_right(verb: str, resource: str, said: str, asked: Asked) -> str:
    user = re.search(r'User "([^"]+)"', said)
    space = re.search(r'in the namespace "([^"]+)"', said)
    where = f" in the namespace '{space[1]}'" if space else " in the whole cluster" if "cluster scope" in said else ""
    who = f"the user '{user[1]}'" if user else "your user"
    return (
        f"{who} may not {verb} {resource}{where} of '{asked.cluster}'; "
        f"have an administrator apply {RBAC_FILE}, or use a kubeconfig with that right."
    )


def _amounts(match: re.Match[str]) -> str:
    if match["asked"] is None:
        return "it is used up"
    return f"asked for {match['asked']}, {match['used']} used, {match['most'].rstrip('.')} allowed"


def _named(asked: Asked) -> str:
    return f" '{asked.namespace}'" if asked.namespace else ""


def _shorten(text: str) -> str:
    line = re.sub(r"\. (?=[A-Z])", ", ", " ".join(text.split())).rstrip(".")
    return line if len(line) <= 400 else f"{line[:397]}..."
