"""Which keys to offer at a hop, resolved once: an identity file alone, or else the agent's and the default keys."""

# ruff: noqa: ASYNC240 - a stat of a local file blocks for less than a trip to a thread would take

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import asyncssh


class UnusableKey(Exception):
    """This identity needs what only OpenSSH can do (ask for a passphrase, talk to a FIDO key); str() says why."""


class Identities:
    """Loads each identity once and shares one connection to each agent."""

    def __init__(self) -> None:
        self._files: dict[str, asyncio.Task[list[asyncssh.SSHKeyPair]]] = {}
        self._agents: dict[str, asyncio.Task[tuple[asyncssh.SSHAgentClient, list[asyncssh.SSHKeyPair]]]] = {}

    async def from_file(self, name: str) -> list[asyncssh.SSHKeyPair]:
        """Key pairs of one identity file, with its certificate first when there is one. Raises UnusableKey."""
        if name not in self._files:
            self._files[name] = asyncio.create_task(self._load(Path(name).expanduser()))
        return list(await asyncio.shield(self._files[name]))

    async def _load(self, path: Path) -> list[asyncssh.SSHKeyPair]:
        if not path.exists():
            if path.with_name(path.name + ".pub").exists():  # the private half may live in the agent alone
                return await self._from_agent(path, "it has no private key file, and the agent does not hold it")
            raise UnusableKey("the file does not exist")
        try:
            pairs = list(asyncssh.load_keypairs([str(path)]))
        except asyncssh.KeyEncryptionError:
            return await self._from_agent(path, "it is protected by a passphrase, and the agent does not hold it")
        except asyncssh.KeyImportError as error:
            if path.suffix == ".pub" or "passphrase" in str(error).lower():
                return await self._from_agent(path, "it is protected by a passphrase, and the agent does not hold it")
            raise UnusableKey("the file holds no private key that can be read") from None
        except OSError as error:
            raise UnusableKey(error.strerror or "the file cannot be read") from None
        if any(pair.algorithm.startswith((b"sk-", b"webauthn-")) for pair in pairs):
            return await self._from_agent(path, "it lives on a FIDO token, and the agent does not hold it")
        return pairs

    async def _from_agent(self, path: Path, reason: str) -> list[asyncssh.SSHKeyPair]:
        try:
            wanted = {key.public_data for key in asyncssh.load_public_keys([str(_public_file(path))])}
        except (OSError, asyncssh.KeyImportError):
            raise UnusableKey(reason) from None
        # A certificate in the agent carries the plain key's data behind it, as `key` pairs do in asyncssh.
        pairs = [pair for pair in await self.from_agent() if pair.public_data in wanted]
        if not pairs:
            raise UnusableKey(reason)
        return pairs

    async def from_agent(self, path: str | None = None) -> list[asyncssh.SSHKeyPair]:
        """Keys that an agent holds ($SSH_AUTH_SOCK by default); none when there is no agent."""
        path = path or os.environ.get("SSH_AUTH_SOCK", "")
        if not path:
            return []
        if path not in self._agents:
            self._agents[path] = asyncio.create_task(self._ask_agent(path))
        try:
            _, pairs = await asyncio.shield(self._agents[path])
        except (OSError, ValueError):
            return []
        return list(pairs)

    @staticmethod
    async def _ask_agent(path: str) -> tuple[asyncssh.SSHAgentClient, list[asyncssh.SSHKeyPair]]:
        agent = await asyncssh.connect_agent(path)
        return agent, list(await agent.get_keys())

    async def close(self) -> None:
        """Close the agents' connections."""
        for task in (*self._files.values(), *self._agents.values()):
            task.cancel()
        for task in self._agents.values():
            if task.done() and not task.cancelled() and task.exception() is None:
                agent, _ = task.result()
                agent.close()
                await agent.wait_closed()


def _public_file(path: Path) -> Path:
    return path if path.suffix == ".pub" else path.with_name(path.name + ".pub")
