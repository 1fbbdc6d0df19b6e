"""A pod's port on standard input and output (``python -m`` this module, CLUSTER NAMESPACE POD PORT).

OpenSSH's ProxyCommand where there is no jump pod. The cluster is found as every command finds it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys

from lambdactl.errors import LambdactlError, SpecError

from .client import open_client
from .config import targets
from .sockets import NothingListens, Stream


async def forward(cluster: str, namespace: str, pod: str, port: int) -> None:
    """Carry bytes both ways until either side ends."""
    found = {target.name: target for target in targets()}
    if cluster not in found:
        raise SpecError(f"the cluster '{cluster}' is not configured any more; there are: {', '.join(found)}.")
    target = dataclasses.replace(found[cluster], namespace=namespace)
    async with open_client(target) as client, client.port_forward(pod, port) as stream:
        tasks = [asyncio.create_task(_up(stream)), asyncio.create_task(_down(stream))]
        done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        for task in done:
            task.result()


async def _up(stream: Stream) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    while data := await reader.read(65536):
        await stream.write(data)


async def _down(stream: Stream) -> None:
    while data := await stream.read():
        await asyncio.to_thread(_write, data)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def main() -> int:
    """The command."""
    cluster, namespace, pod, port = sys.argv[1:]
    try:
        asyncio.run(forward(cluster, namespace, pod, int(port)))
    except NothingListens:
        print(
            f"lambdactl: the pod '{pod}' has no sshd: its image lacks one (package openssh-server), or it has ended; "
            "use an image that has it, such as lambdactl's default image.",
            file=sys.stderr,
        )
        return NothingListens.exit_code
    except LambdactlError as error:
        print(f"lambdactl: {error}", file=sys.stderr)
        return error.exit_code
    except (BrokenPipeError, KeyboardInterrupt):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
