"""The fake's streaming endpoints of pods: log, exec and port-forward (by websocket)."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime

from aiohttp import WSMsgType, web

from .kubelet import Kubelet, stamped
from .server import ApiServer, Ask
from .store import Object, Refused


class Streams:
    """Serves the streams of all pods."""

    def __init__(self, server: ApiServer, kubelet: Kubelet) -> None:
        self.server, self.kubelet = server, kubelet
        server.streams = {"log": self.log, "exec": self.exec, "portforward": self.port_forward}

    def _pod(self, ask: Ask) -> Object:
        return self.server.store.get(ask.resource, ask.space, ask.name or "")

    async def log(self, ask: Ask) -> web.StreamResponse:
        pod, query = self._pod(ask), ask.request.query
        container = query.get("container") or pod["spec"]["containers"][0]["name"]
        log = self.kubelet.logs.get((pod["metadata"]["uid"], container))
        if log is None:
            said = f'container "{container}" in pod "{ask.name}" is waiting to start: ContainerCreating'
            raise Refused(400, "BadRequest", said)
        since = 0
        if "sinceTime" in query:
            since = int(datetime.fromisoformat(query["sinceTime"].replace("Z", "+00:00")).timestamp()) * 10**9
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(ask.request)
        told, follow, times = 0, query.get("follow") == "true", query.get("timestamps") == "true"
        while True:
            changed, ended = log.changed, log.ended
            lines = [(at, line) for at, line in log.lines[told:] if at >= since]
            told = len(log.lines)
            data = b"".join(stamped(at, line) if times else line for at, line in lines)
            if data:
                await response.write(data)
            if ended or not follow:
                return response
            await changed.wait()

    async def exec(self, ask: Ask) -> web.StreamResponse:
        pod, query = self._pod(ask), ask.request.query
        socket = web.WebSocketResponse(protocols=("v5.channel.k8s.io", "v4.channel.k8s.io"))
        if not socket.can_prepare(ask.request):
            raise Refused(400, "BadRequest", "Upgrade request required")
        await socket.prepare(ask.request)
        given = b""
        if query.get("stdin") == "true":
            async for message in socket:
                if message.type is not WSMsgType.BINARY or message.data[:1] == b"\xff":
                    break
                given += message.data[1:]
        code, out, err = await self.kubelet.execute(pod, query.getall("command"), given, query.get("container"))
        for channel, data in ((1, out), (2, err)):
            if data:
                await socket.send_bytes(bytes([channel]) + data)
        status: Object = {"metadata": {}, "status": "Success"}
        if code:
            cause = {"reason": "ExitCode", "message": str(code)}
            status = {
                "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": [cause]},
                "message": f"command terminated with non-zero exit code: exit status {code}",
            }  # fmt: skip
        await socket.send_bytes(b"\x03" + json.dumps(status).encode())
        await socket.close()
        return socket

    async def port_forward(self, ask: Ask) -> web.StreamResponse:
        pod, port = self._pod(ask), int(ask.request.query["ports"])
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",), max_msg_size=0)
        if not socket.can_prepare(ask.request):
            raise Refused(400, "BadRequest", "Upgrade request required")
        await socket.prepare(ask.request)
        for channel in (0, 1):
            await socket.send_bytes(bytes([channel]) + port.to_bytes(2, "little"))
        try:
            reader, writer = await self.kubelet.forward(pod, port)
        except OSError as error:
            # The words of containerd 1.6 below Kubernetes 1.36.
            inside = str(error) if not isinstance(error, ConnectionRefusedError) else "connect: connection refused"
            said = (
                f"error forwarding port {port} to pod {pod['metadata']['uid']}, uid : failed to execute portforward in "
                f'network namespace "/var/run/netns/cni-1": failed to connect to localhost:{port} inside namespace, '
                f"IPv4: dial tcp4 127.0.0.1:{port}: {inside} IPv6 dial tcp6: no suitable address"
            )
            await socket.send_bytes(b"\x01" + said.encode())
            await socket.close()
            return socket

        async def back() -> None:
            while data := await reader.read(32768):
                await socket.send_bytes(b"\x00" + data)
            await socket.close()

        task = asyncio.ensure_future(back())
        try:
            async for message in socket:
                if message.type is WSMsgType.BINARY and message.data[:1] == b"\x00":
                    writer.write(message.data[1:])
                    await writer.drain()
        finally:
            task.cancel()
            writer.close()
        return socket
