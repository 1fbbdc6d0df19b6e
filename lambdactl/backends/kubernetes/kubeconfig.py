"""The kubeconfig: where it is, which contexts it has, and how a login is made of it.

The login itself (tokens, client certificates, exec plugins, OIDC) is the ``kubernetes`` package's; it is imported when
a login is made.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lambdactl.errors import ConnectionFailed, LambdactlError, SpecError
from lambdactl.spec.nodes import nearest

from .service_account import in_cluster

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True, slots=True)
class Kubeconfig:
    """One kubeconfig, or several merged as kubectl does it.

    Attributes:
        document: the content.
        shown: the file's name, for messages.
        path: the file, where it is one; it is read again when a login has expired.
    """

    document: Mapping[str, Any] = field(repr=False)
    shown: str
    path: Path | None = None

    @classmethod
    def from_text(cls, text: str, *, shown: str, base: Path) -> Kubeconfig:
        """A kubeconfig from its text.

        Raises:
            SpecError: it is not a kubeconfig.
        """
        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            raise SpecError(
                f"this kubeconfig is not valid YAML ({getattr(error, 'problem', None) or 'unreadable'}); "
                "download it again.",
                filename=shown,
                line=mark.line + 1 if mark else None,
            ) from None
        if not isinstance(document, dict) or not isinstance(document.get("contexts"), list):
            raise SpecError("this is not a kubeconfig: it has no 'contexts'; download it again.", filename=shown)
        return cls(_absolute(document, base), shown)

    def again(self) -> Kubeconfig:
        """What the file holds now, for it may have been downloaded anew; as it was where that is not usable."""
        try:
            return self if self.path is None else _read(self.path)
        except SpecError:
            return self

    def contexts(self) -> list[str]:
        """The names of its contexts."""
        return [str(entry["name"]) for entry in _named(self.document.get("contexts"))]

    def context(self, name: str | None = None, *, where: tuple[str, int] | None = None) -> str:
        """A context's name, checked; without one, the current context.

        Raises:
            SpecError: there is no such context, or its cluster or user is missing.
        """
        known = self.contexts()
        wanted = name or self.document.get("current-context")
        if not wanted:
            hint = f"set it with `kubectl config use-context {known[0]}`" if known else "download it again"
            raise SpecError(f"the kubeconfig has no 'current-context'; {hint}.", filename=self.shown)
        if wanted not in known:
            meant = nearest(str(wanted), known)
            hint = f"did you mean '{meant}'?" if meant else f"there are: {', '.join(known) or 'none'}."
            filename, line = where or (self.shown, None)
            raise SpecError(f"the kubeconfig has no context '{wanted}'; {hint}", filename=filename, line=line)
        self._entry(str(wanted), "cluster", required=True)
        self._entry(str(wanted), "user", required=False)
        return str(wanted)

    def namespace(self, context: str) -> str | None:
        """The context's namespace, where it has one."""
        value = self._context(context).get("namespace")
        return str(value) if value else None

    def server(self, context: str) -> str:
        """The API server's URL."""
        return str(self._entry(context, "cluster", required=True).get("server", "")).rstrip("/")

    def user(self, context: str) -> Mapping[str, Any]:
        """The context's user entry; empty where it has none."""
        return self._entry(context, "user", required=False)

    def _context(self, name: str) -> Mapping[str, Any]:
        for entry in _named(self.document.get("contexts")):
            if entry["name"] == name and isinstance(entry.get("context"), dict):
                return dict(entry["context"])
        return {}

    def _entry(self, context: str, kind: str, *, required: bool) -> Mapping[str, Any]:
        name = self._context(context).get(kind)
        for entry in _named(self.document.get(f"{kind}s")):
            if entry["name"] == name and isinstance(entry.get(kind), dict):
                return dict(entry[kind])
        if required or name:
            raise SpecError(
                f"the context '{context}' names the {kind} '{name}', which the kubeconfig does not have; "
                "download it again, or choose another context.",
                filename=self.shown,
            )
        return {}


def read_kubeconfig(path: str | None, *, environ: Mapping[str, str] = os.environ) -> Kubeconfig:
    """The kubeconfig of a path; without one, of KUBECONFIG (several files are merged), ``~/.kube/config``, or the pod.

    Raises:
        SpecError: there is none, it cannot be read, or it is none.
    """
    if path is not None:
        return _read(Path(path).expanduser())
    listed = [Path(part).expanduser() for part in environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    if not listed:
        default = Path(environ.get("HOME") or "~").expanduser() / ".kube" / "config"
        if not default.is_file():
            if (found := in_cluster(environ)) is not None:
                return Kubeconfig(found, "the pod's service account")
            raise SpecError(
                "no Kubernetes cluster is configured: there is no ~/.config/lambdactl/config.yml with a kubernetes "
                "backend, no ~/.dstack/server/config.yml, no KUBECONFIG and no ~/.kube/config; "
                "set KUBECONFIG to the file that you downloaded for the cluster."
            )
        return _read(default)
    present = [one for one in listed if one.exists()]
    if not present:
        raise SpecError(f"KUBECONFIG names {os.pathsep.join(map(str, listed))}, which does not exist; correct it.")
    return _merge([_read(one) for one in present])


def _read(path: Path) -> Kubeconfig:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpecError(
            f"the kubeconfig cannot be read: {reason}; check the path, or download it again.", filename=str(path)
        ) from None
    return replace(Kubeconfig.from_text(text, shown=str(path), base=path.resolve().parent), path=path)


def _merge(found: list[Kubeconfig]) -> Kubeconfig:
    """The first file that sets a value wins, as kubectl has it."""
    if len(found) == 1:
        return found[0]
    merged: dict[str, Any] = {"apiVersion": "v1", "kind": "Config"}
    for kind in ("clusters", "contexts", "users"):
        entries = [entry for one in found for entry in _named(one.document.get(kind))]
        merged[kind] = list({entry["name"]: entry for entry in reversed(entries)}.values())[::-1]
    currents = [one.document["current-context"] for one in found if one.document.get("current-context")]
    merged["current-context"] = currents[0] if currents else ""
    return Kubeconfig(merged, os.pathsep.join(one.shown for one in found))


def _named(entries: object) -> list[dict[str, Any]]:
    return [e for e in entries if isinstance(e, dict) and "name" in e] if isinstance(entries, list) else []


_PATHS = {
    "cluster": ("certificate-authority",),
    "user": ("client-certificate", "client-key", "tokenFile"),
}


def _absolute(document: dict[str, Any], base: Path) -> dict[str, Any]:
    """Paths inside of a kubeconfig are relative to it."""
    for kind, names in _PATHS.items():
        for entry in _named(document.get(f"{kind}s")):
            values = entry.get(kind)
            if not isinstance(values, dict):
                continue
            for name in names:
                if values.get(name):
                    values[name] = str(base / Path(str(values[name])).expanduser())
    return document


class Login:
    """A login to one context: the server, the TLS settings and the headers of requests.

    Args:
        kubeconfig: where the login comes from.
        context: the context.
    """

    def __init__(self, kubeconfig: Kubeconfig, context: str) -> None:
        self.kubeconfig = kubeconfig
        self.context = context
        self.server = kubeconfig.server(context)
        self.proxy: str | None = None
        self.server_name: str | None = None
        self.tls: ssl.SSLContext | None = None
        self._authorization: str | None = None
        self._renewing = asyncio.Lock()

    def headers(self) -> dict[str, str]:
        """The Authorization header, where a token is used."""
        return {"Authorization": self._authorization} if self._authorization else {}

    async def expired(self, headers: Mapping[str, str]) -> bool:
        """A request with these headers was refused: whether there is another login now to try.

        Many requests may come at once (each log stream is one); the login is made anew once for all of them.
        """
        async with self._renewing:
            if headers.get("Authorization") != self._authorization:
                return True
            self.kubeconfig = self.kubeconfig.again()
            return await self.renew()

    async def renew(self) -> bool:
        """Log in, or log in again: token files are read and exec plugins run anew. Whether the token has changed.

        Raises:
            SpecError: the kubeconfig is incomplete, or a file that it names is missing.
            ConnectionFailed: the login program failed.
        """
        from kubernetes.aio.client import Configuration
        from kubernetes.aio.config import ConfigException
        from kubernetes.aio.config.kube_config import KubeConfigLoader

        said = _Said()
        logger = logging.getLogger("kubernetes.aio.config.kube_config")
        logger.addHandler(said)
        propagate, logger.propagate = logger.propagate, False
        settings = type.__call__(Configuration)  # a fresh one, not the process-wide default
        try:
            document = _plain_copy(self.kubeconfig.document)
            await KubeConfigLoader(document, active_context=self.context).load_and_set(settings)
        except (ConfigException, ValueError, KeyError, OSError) as error:
            raise SpecError(
                f"the context '{self.context}' cannot be used: {_one_line(error)}; download the kubeconfig again.",
                filename=self.kubeconfig.shown,
            ) from None
        finally:
            logger.removeHandler(said)
            logger.propagate = propagate
        if said.lines and "exec" in self.kubeconfig.user(self.context):
            raise self._exec_failed(said.lines[-1])
        before = self._authorization
        self._authorization = settings.api_key.get("BearerToken")
        self.proxy, self.server_name = settings.proxy, settings.tls_server_name
        if self.tls is None or settings.cert_file:
            self.tls = self._tls(settings)
        return self._authorization != before

    def _exec_failed(self, said: str) -> LambdactlError:
        plugin = self.kubeconfig.user(self.context)["exec"]
        command = str(plugin.get("command", "")) if isinstance(plugin, dict) else ""
        if "No such file" in said or "not found" in said:
            hint = _one_line(plugin.get("installHint") or "").rstrip(".")
            hint = hint and f" (the kubeconfig says: {hint})"
            return ConnectionFailed(
                f"the kubeconfig's login program '{command}' is not installed; install it and try again{hint}."
            )
        return ConnectionFailed(
            f"the kubeconfig's login program '{command}' failed: {_one_line(said)}; run it by hand to log in."
        )

    def _tls(self, settings: Any) -> ssl.SSLContext | None:
        import ssl

        if not self.server.startswith("https"):
            return None
        try:
            context = ssl.create_default_context(cafile=settings.ssl_ca_cert)
            # Clusters sign with private authorities, whose certificates often lack what RFC 5280 asks for beyond trust.
            context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
            if settings.cert_file:
                context.load_cert_chain(settings.cert_file, keyfile=settings.key_file)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise SpecError(
                f"the certificates of the context '{self.context}' cannot be used ({_one_line(error)}); "
                "download the kubeconfig again.",
                filename=self.kubeconfig.shown,
            ) from None
        if not settings.verify_ssl:  # the kubeconfig's own insecure-skip-tls-verify
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class _Said(logging.Handler):
    """Keeps what the package only logs: why an exec plugin failed."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _plain_copy(document: Mapping[str, Any]) -> dict[str, Any]:
    import copy

    return copy.deepcopy(dict(document))


def _one_line(error: object) -> str:
    text = " ".join(str(error).replace("b'", "'").split())
    return text if len(text) <= 300 else f"{text[:297]}..."
