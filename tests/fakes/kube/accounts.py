"""What lets a pod of the process mode talk to the API: two variables, and the token of its service account."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from .podnet import open_door
from .server import ApiServer
from .store import Object

Share = Path | tuple[Path, str]
"""A folder of this machine that a container sees: at its own place, or at another one."""
PLACE = "/run/secrets/kubernetes.io/serviceaccount"


class Accounts:
    """The API, as the pods' network reaches it. ``ca`` and ``port`` are None where it has no TLS: then no pod can."""

    def __init__(self, server: ApiServer, gateway: str) -> None:
        self.server, self.gateway = server, gateway
        self.ca: str | None = None
        self.port: Callable[[], int] | None = None
        self._door: asyncio.Server | None = None

    async def of(self, pod: Object, folder: Path, env: dict[str, str]) -> list[Share]:
        """Add to the container's variables; the folder that it sees."""
        if self.ca is None or self.port is None:
            return []
        if self._door is None:
            self._door = await open_door(self.gateway, self.port)
        env["KUBERNETES_SERVICE_HOST"] = self.gateway
        env["KUBERNETES_SERVICE_PORT"] = str(self._door.sockets[0].getsockname()[1])
        token = self.server.token_of(pod)
        if token is None or pod["spec"].get("automountServiceAccountToken") is False:
            return []
        place = folder / "account"
        place.mkdir(parents=True, exist_ok=True)
        for name, text in {"token": token, "ca.crt": self.ca, "namespace": pod["metadata"]["namespace"]}.items():
            (place / name).write_text(text)
        return [(place, PLACE)]

    def close(self) -> None:
        if self._door is not None:
            self._door.close()
