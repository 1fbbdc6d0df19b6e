"""The `container` key of a job: how a rank's commands run in a container. Parsed once, strictly."""

from __future__ import annotations

from .errors import NodeError
from .light import Pattern

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .spec import Job

ENGINES = ("auto", "docker", "podman")
# No option may pass for an image's name, nothing in it may be a control character or a space.
IMAGE = Pattern(r"[A-Za-z0-9][\w./:@+-]{0,511}", "ASCII")
USER = Pattern(r"[A-Za-z0-9_][\w.@+-]*\$?(:[A-Za-z0-9_][\w.@+-]*\$?)?", "ASCII")


def _bad(field: str, value: object, allowed: str) -> NodeError:
    return NodeError("bad-request", f"job: container.{field} is {str(value)[:80]!r}, allowed is {allowed}")


def _text(raw: dict[str, Any], field: str) -> str | None:
    value = raw.get(field)
    if value is not None and (not isinstance(value, str) or "\0" in value):
        raise _bad(field, type(value).__name__, "text without NUL")
    return value


def _texts(raw: dict[str, Any], field: str) -> list[str]:
    value = raw.get(field) or []
    if not isinstance(value, list) or not all(isinstance(word, str) and "\0" not in word for word in value):
        raise _bad(field, value, "a list of texts without NUL")
    return value


def _number(raw: dict[str, Any], field: str) -> float | None:
    value = raw.get(field)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e18):
        raise _bad(field, value, "a number above 0")
    return value


def _matching(raw: dict[str, Any], field: str, pattern: Pattern, allowed: str) -> str | None:
    value = _text(raw, field)
    if value is not None and not pattern.fullmatch(value):
        raise _bad(field, value, allowed)
    return value


class Container:
    """What a container is made of. Sizes in bytes, times in seconds; None leaves a thing to the image or the engine.

    Without `entrypoint` and with commands in the job, the job's shell runs them; otherwise the entrypoint (the image's
    own when None) gets `arguments`.
    """

    def __init__(self, raw: object) -> None:
        if not isinstance(raw, dict):
            raise NodeError("bad-request", "job: container is no object")
        self.engine = str(raw.get("engine") or "auto")
        if self.engine not in ENGINES:
            raise _bad("engine", self.engine, ", ".join(ENGINES))
        image = _matching(raw, "image", IMAGE, "the name of an image")
        if image is None:
            raise _bad("image", image, "the name of an image")
        self.image = image
        self.entrypoint = _texts(raw, "entrypoint") or None
        self.arguments = _texts(raw, "arguments")
        self.user = _matching(raw, "user", USER, "a name or number, or user:group")
        self.working_dir = _text(raw, "working_dir")
        self.privileged = raw.get("privileged") is True
        self.socket = raw.get("socket") is True
        self.shm_size = _number(raw, "shm_size")
        self.pull_timeout = _number(raw, "pull_timeout")
        self.username, self.password = self._auth(raw.get("registry_auth"))

    @staticmethod
    def _auth(auth: object) -> tuple[str, str]:
        if auth is None:
            return "", ""
        names = ("username", "password")
        if not isinstance(auth, dict) or not all(isinstance(auth.get(name), str) for name in names):
            raise _bad("registry_auth", type(auth).__name__, "an object of username and password")
        return auth["username"], auth["password"]


def parse(raw: object) -> Container | None:
    """The container that a job asks for; None for one that runs on the host itself."""
    return None if raw is None else Container(raw)


def needed(job: Job) -> Container:
    """The job's container. Raises NodeError (bad-request) for a job that runs on the host itself."""
    if job.container is None:
        raise NodeError("bad-request", f"run {job.run_name} runs on the host, not in a container")
    return job.container


def container_name(run: str, rank: int) -> str:
    """The name of a rank's container in its engine."""
    return f"lambdactl-{run}-{rank}"
