"""The floor of one process: asyncssh and nothing else. One jump connection, one exec a node.

python -m tests.bench.floor PORT JUMP_HOST JUMP_PORT USER KEY COMMAND NODE...
"""

from __future__ import annotations

import asyncio
import sys

import asyncssh


async def main(port: int, jump_host: str, jump_port: int, user: str, key: str, command: str, nodes: list[str]) -> None:
    keys = [asyncssh.read_private_key(key)]
    common = {"username": user, "client_keys": keys, "known_hosts": None, "agent_path": None, "config": None}
    async with asyncssh.connect(jump_host, jump_port, **common) as jump:

        async def one(node: str) -> None:
            async with jump.connect_ssh(node, port, kex_algs=["curve25519-sha256"], **common) as connection:
                await connection.run(command, check=True)

        await asyncio.gather(*(one(node) for node in nodes))


if __name__ == "__main__":
    node_port, host, port, user, key, command, *nodes = sys.argv[1:]
    asyncio.run(main(int(node_port), host, int(port), user, key, command, nodes))
