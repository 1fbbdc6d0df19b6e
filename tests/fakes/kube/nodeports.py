"""Node ports of the process mode: ports of this machine's loopback address that lead to ready pods of a Service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from .podnet import pump
from .store import Object, Store

Connect = Callable[[Object, int], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class NodePorts:
    """Listens for every NodePort that a Service has; ``connect`` reaches a pod's port."""

    def __init__(self, store: Store, connect: Connect) -> None:
        self.store, self.connect = store, connect
        self._servers: dict[int, asyncio.Server | None] = {}  # None until it listens
        self._tasks: set[asyncio.Future[None]] = set()

    def step(self) -> None:
        """Begin to listen for what is new."""
        for service in self.store.all("services"):
            for port in service["spec"].get("ports") or []:
                number = port.get("nodePort")
                if number and number not in self._servers:
                    self._servers[number] = None
                    task = asyncio.ensure_future(self._listen(service["metadata"]["namespace"], service["spec"], port))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

    async def _listen(self, namespace: str, spec: Object, port: Object) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                pod = next(p for p in self.store.all("pods", namespace) if serves(p, spec))
                other_reader, other_writer = await self.connect(
                    pod, port_number(pod, port.get("targetPort", port["port"]))
                )
            except (StopIteration, OSError):
                writer.close()
                return
            await asyncio.gather(pump(reader, other_writer), pump(other_reader, writer))

        with contextlib.suppress(OSError):
            self._servers[port["nodePort"]] = await asyncio.start_server(serve, "127.0.0.1", port["nodePort"])

    def close(self) -> None:
        for server in self._servers.values():
            if server is not None:
                server.close()


def serves(pod: Object, spec: Object) -> bool:
    """Whether a pod gets connections of a Service."""
    labels = pod["metadata"].get("labels") or {}
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions") or [])
    return (
        ready
        and "deletionTimestamp" not in pod["metadata"]
        and all(labels.get(k) == v for k, v in (spec.get("selector") or {}).items())
    )


def port_number(pod: Object, port: object) -> int:
    """A port by number, or by its name in the pod."""
    for container in pod["spec"]["containers"]:
        for found in container.get("ports") or []:
            if found.get("name") == port:
                return int(found["containerPort"])
    return int(str(port))
