"""Cluster addresses of the process mode: each Service's ClusterIP is an address of the pods' bridge.

What connects there gets to a ready pod, another one each time; without one nothing listens, as the rule of a real
node's proxy would refuse it. Pods that are ending get no new connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools

from .nodeports import Connect, port_number, serves
from .podnet import PodNetwork, pump, run
from .server import ApiServer
from .store import Object


class ClusterIPs:
    """Listens at the ClusterIP of every Service that has a ready pod."""

    def __init__(self, server: ApiServer, network: PodNetwork, connect: Connect) -> None:
        self.store, self.network, self.connect = server.store, network, connect
        server.service_subnet = network.services
        self._open: dict[tuple[str, int], asyncio.Server | None] = {}  # None until it listens
        self._tasks: set[asyncio.Future[None]] = set()
        self._turn = itertools.count()

    def step(self) -> None:
        """Listen where a Service has a ready pod, and nowhere else."""
        if not self.network.is_up:
            return
        wanted: dict[tuple[str, int], tuple[Object, Object]] = {}
        for service in self.store.all("services"):
            address = service["spec"].get("clusterIP", "None")
            if address != "None" and self._pods(service):
                wanted |= {(address, port["port"]): (service, port) for port in service["spec"].get("ports") or []}
        for key in [key for key, server in self._open.items() if key not in wanted and server is not None]:
            server = self._open.pop(key)
            if server is not None:
                server.close()
        for key, (service, port) in wanted.items():
            if key not in self._open:
                self._open[key] = None
                task = asyncio.ensure_future(self._listen(key, service["metadata"], port))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _pods(self, service: Object) -> list[Object]:
        pods = self.store.all("pods", service["metadata"]["namespace"])
        return [pod for pod in pods if service["spec"].get("selector") and serves(pod, service["spec"])]

    async def _listen(self, key: tuple[str, int], owner: Object, port: Object) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            service = self.store.find("services", owner["namespace"], owner["name"])
            pods = self._pods(service) if service is not None else []
            try:
                pod = pods[next(self._turn) % len(pods)] if pods else None
                if pod is None:
                    raise ConnectionRefusedError
                number = port_number(pod, port.get("targetPort", port["port"]))
                other_reader, other_writer = await self.connect(pod, number)
            except OSError:
                writer.transport.abort()
                return
            await asyncio.gather(pump(reader, other_writer), pump(other_reader, writer))

        await run("ip", "addr", "replace", f"{key[0]}/32", "dev", self.network.bridge, check=False)
        with contextlib.suppress(OSError):
            self._open[key] = await asyncio.start_server(serve, *key)
        if self._open.get(key) is None:
            self._open.pop(key, None)

    def close(self) -> None:
        for server in self._open.values():
            if server is not None:
                server.close()
