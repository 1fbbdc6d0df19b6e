"""A sandbox's own files: the key pair and the fleet file, in ``<state>/sandbox/<name>/``."""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from platformdirs import user_state_dir

from lambdactl.errors import SpecError
from lambdactl.sandbox.model import USER, SandboxError

# A container name and a host name are made of it, and a fleet name, which dstack limits to 41 characters.
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")


def check_name(name: str) -> str:
    """Returns the name when it can name a sandbox.

    Raises:
        SpecError: it cannot.
    """
    if not NAME.fullmatch(name):
        raise SpecError(
            f"{name!r} cannot name a sandbox: use 1 to 31 lower-case letters, digits and -, a letter first, e.g. demo."
        )
    return name


def fleet_name(name: str) -> str:
    """The name of the sandbox's fleet: ``sandbox`` for the default one, else ``sandbox-<name>``."""
    return "sandbox" if name == "default" else f"sandbox-{name}"


class Store:
    """The folder of one sandbox.

    Attributes:
        folder: mode 0700, made on first use.
        identity_file: the private key; the public key is beside it.
        fleet_file: the fleet file.
    """

    def __init__(self, name: str) -> None:
        self.name = check_name(name)
        self.root = Path(user_state_dir("lambdactl")) / "sandbox"
        self.folder = self.root / name
        self.identity_file = self.folder / "id_ed25519"
        self.fleet_file = self.folder / f"{name}.dstack.yml"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held while a sandbox is changed, so that two ``up`` of one name follow each other."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.root / f".{self.name}.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def public_key(self) -> str:
        """The public key's line; the pair is made when it is missing or does not belong together.

        Raises:
            SandboxError: ssh-keygen is missing or fails.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.chmod(0o700)
        if self.identity_file.exists():
            self.identity_file.chmod(0o600)
            known = _keygen("-y", "-P", "", "-f", str(self.identity_file))
            if known is not None:
                return f"{' '.join(known.split()[:2])} {self._comment}"
        for leftover in (self.identity_file, self.identity_file.with_suffix(".pub")):
            leftover.unlink(missing_ok=True)
        made = _keygen("-q", "-t", "ed25519", "-N", "", "-C", self._comment, "-f", str(self.identity_file))
        if made is None:
            raise SandboxError(f"ssh-keygen could not make the sandbox's key in {self.folder}; is the disk full?")
        return self.identity_file.with_suffix(".pub").read_text().strip()

    @property
    def _comment(self) -> str:
        return f"lambdactl-sandbox-{self.name}"

    def write_fleet(self, workers: Sequence[str], port: int) -> None:
        """Writes the fleet file, in dstack's format, unless it says the same already."""
        text = FLEET.format(
            name=fleet_name(self.name),
            user=USER,
            identity_file=_yaml_string(str(self.identity_file)),
            hosts="\n".join(f"    - {worker}" for worker in workers),
            port=port,
        )
        if self.fleet_file.exists() and self.fleet_file.read_text() == text:
            return
        fresh = self.fleet_file.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.fleet_file)

    def workers(self) -> list[str]:
        """The workers of the fleet file; none when there is no such file."""
        if not self.fleet_file.exists():
            return []
        lines = (line.strip() for line in self.fleet_file.read_text().splitlines())
        return [line.removeprefix("- ") for line in lines if line.startswith("- worker-")]

    def remove(self) -> None:
        """Removes the folder and the lock."""
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.root / f".{self.name}.lock").unlink(missing_ok=True)


FLEET = """\
# Written by `lambdactl sandbox up`; it is rewritten by the next one.
type: fleet
name: {name}
placement: cluster

ssh_config:
  user: {user}
  identity_file: {identity_file}
  hosts:
{hosts}
  proxy_jump:
    hostname: 127.0.0.1
    port: {port}
    user: {user}
    identity_file: {identity_file}
"""


def _yaml_string(text: str) -> str:
    """A path as a YAML scalar; quoted only where a plain one would mean something else."""
    plain = re.fullmatch(r"[A-Za-z0-9_./~+-]+", text)
    return text if plain else "'" + text.replace("'", "''") + "'"


def _keygen(*argv: str) -> str | None:
    """The output of ssh-keygen, None when it fails."""
    try:
        done = subprocess.run(
            ["ssh-keygen", *argv], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30
        )
    except FileNotFoundError:
        raise SandboxError(
            "ssh-keygen is not installed.", remedy="Install openssh-client, or run scripts/bootstrap demo."
        ) from None
    return done.stdout if done.returncode == 0 else None
