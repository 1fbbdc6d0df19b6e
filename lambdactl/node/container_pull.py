"""Getting a rank's image: only when it is not there (or is `latest`), with progress, and failures in one sentence."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import select
import shutil
import struct
import subprocess
import termios
import time

from . import container_argv, paths
from .env import login_environment
from .errors import NodeError
from .launch import find_user
from .programs import SEARCH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .container import Container
    from .container_engine import Engine
    from .spec import Job

REPORT_INTERVAL = 0.5
LAST_LINES = 40
DOCKER_HUB = ("https://index.docker.io/v1/", "docker.io")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
SIZE = r"([0-9.]+)\s?([kKMGT]?i?)B"
# "3a1b...: Downloading [==>  ]  1.2MB/34MB" (Docker), "Copying blob 3a1b [==>--] 1.2MiB / 34MiB" (Podman)
LAYER = re.compile(r"(?:^|blob (?:sha256:)?)([0-9a-f]{12})[0-9a-f]*:? +(.*)")
AMOUNTS = re.compile(SIZE + r"\s?/\s?" + SIZE)
ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
ENDED = ("Pull complete", "Download complete", "Extracting", "Verifying Checksum", "Already exists", "done", "skipped")


class Progress:
    """Layers of an image that is being pulled, from what the engine writes on a terminal. Sizes in bytes."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[int, int]] = {}

    def feed(self, line: str) -> None:
        """Take in one line."""
        found = LAYER.search(ESCAPES.sub("", line).strip())
        if found is None:
            return
        layer, text = found.groups()
        done, total = self._layers.get(layer, (0, 0))
        amounts = AMOUNTS.search(text)
        if text.startswith(ENDED) or re.search(r"\bdone\b", text):
            done = total
        elif amounts is not None:
            done, total = _bytes(*amounts.group(1, 2)), _bytes(*amounts.group(3, 4))
        self._layers[layer] = (done, max(done, total))

    def amounts(self) -> dict[str, int]:
        """Bytes that have come, and bytes of all layers whose size is known by now."""
        return {
            "done": sum(done for done, _ in self._layers.values()),
            "total": sum(total for _, total in self._layers.values()),
        }


def _bytes(number: str, unit: str) -> int:
    try:
        return int(float(number) * UNITS[unit.lower()])
    except ValueError:
        return 0


def registry(image: str) -> str:
    """The registry that an image's name means; "docker.io" where it names none."""
    first, slash, _ = image.partition("/")
    return first if slash and (first == "localhost" or "." in first or ":" in first) else "docker.io"


def is_latest(image: str) -> bool:
    """Whether the name means whatever is newest: no digest, and no tag or `latest`."""
    name = image.rpartition("/")[2]
    return "@" not in name and (":" not in name or name.endswith(":latest"))


def client_environment(job: Job) -> dict[str, str]:
    """The environment of the engine's client: nothing of the job's; registry logins are the login user's, if any."""
    proxies = {name: value for name, value in login_environment().items() if name.lower().endswith("_proxy")}
    found = {**proxies, "PATH": SEARCH, "HOME": "/root", "LC_ALL": "C", "TERM": "xterm"}
    try:
        folder = find_user(job.node.ssh_user).home + "/.docker"
    except NodeError:
        return found
    return {**found, "DOCKER_CONFIG": folder} if os.path.exists(folder + "/config.json") else found


def write_login(container: Container, folder: str) -> dict[str, str]:
    """A client configuration that holds nothing but this run's login; {} of variables to use it where there is none."""
    if not container.password:
        return {}
    os.makedirs(folder, mode=0o700, exist_ok=True)
    secret = base64.b64encode(f"{container.username}:{container.password}".encode()).decode()
    where = registry(container.image)
    names = DOCKER_HUB if where in ("docker.io", "index.docker.io") else (where,)
    paths.write_json(folder + "/config.json", {"auths": {name: {"auth": secret} for name in names}})
    return {"DOCKER_CONFIG": folder, "REGISTRY_AUTH_FILE": folder + "/config.json"}


def look(engine: Engine, image: str, env: dict[str, str]) -> dict[str, Any] | None:
    """The image as the engine has it, or None."""
    argv = [*container_argv.client(engine), "image", "inspect", "--format", "{{json .}}", image]
    done = subprocess.run(argv, env=env, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        return None
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return None
    found = found[0] if isinstance(found, list) and found else found  # Podman's way
    return found if isinstance(found, dict) else None


def _run(argv: list[str], env: dict[str, str], limit: float | None, report: Callable[[dict[str, int]], None]) -> str:
    """Pull on a terminal of its own; the text that it wrote when it failed, "" when the image is there.

    Raises NodeError (start-failed) when it takes longer than the user's limit.
    """
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 1000, 200, 0, 0))
    process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    until = None if limit is None else time.monotonic() + limit
    progress, rest, reported = Progress(), "", 0.0
    lines: list[str] = []
    while True:
        if until is not None and time.monotonic() > until:
            process.kill()
            process.wait()
            raise NodeError("start-failed", f"the image was not pulled within {limit:g} s (--pull-timeout)")
        if not select.select([ours], [], [], 0.5)[0]:
            continue
        try:
            data = os.read(ours, 65536)
        except OSError:  # EIO: the client has ended
            break
        *found, rest = re.split(r"[\r\n]+", rest + data.decode("utf-8", "replace"))
        for line in found:
            progress.feed(line)
        lines = [*lines, *(ESCAPES.sub("", line).strip() for line in found)][-LAST_LINES:]
        if time.monotonic() - reported > REPORT_INTERVAL:
            reported = time.monotonic()
            report(progress.amounts())
    os.close(ours)
    report(progress.amounts())
    return "" if process.wait() == 0 else "\n".join([*lines, rest]).strip() or f"exit code {process.returncode}"


def _free(folder: str | None) -> str:
    try:
        return f"{shutil.disk_usage(folder or '/').free / 2**30:.1f} GB free in {folder}"
    except OSError:
        return f"in {folder}"


_CAUSES: tuple[tuple[str, str], ...] = (
    (r"no space left on device|disk quota exceeded", "disk"),
    (r"toomanyrequests|rate limit|429 Too Many", "rate"),
    (r"no matching manifest for|no image found in .*architecture", "architecture"),
    (r"pull access denied|may require 'docker login'", "denied"),
    (r"unauthorized|authentication required|no basic auth|access.*denied|denied:|401|403 Forbidden", "unauthorized"),
    (r"manifest unknown|not found|name unknown|repository .* does not exist", "missing"),
    (r"Cannot connect to the Docker daemon|docker daemon running", "engine"),
    (r"no such host|dial tcp|i/o timeout|connection refused|connection reset|TLS|x509|HTTPS client|EOF", "network"),
)  # fmt: skip


def explain(text: str, engine: Engine, container: Container) -> str:
    """One sentence for why an image did not come: what is wrong, and what to do."""
    image, where = container.image, registry(container.image)
    cause = next((name for pattern, name in _CAUSES if re.search(pattern, text, re.IGNORECASE)), "")
    login = "check registry_auth" if container.password else "give registry_auth in the task file"
    words = [line for line in text.splitlines() if line] or [""]
    last = words[-1].replace("Error response from daemon: ", "").rstrip(".")[-300:]
    return {
        "disk": f"the disk is full ({_free(engine.root)}) while pulling {image}; free space there, for example with:"
        f" sudo {engine.name} system prune",
        "rate": f"{where} limits how often this address may pull ({image}); log in with registry_auth, or wait",
        "architecture": f"the image {image} has no variant for this node's {engine.arch}; choose another image",
        "denied": f"the image {image} does not exist in {where}, or needs a login; check the name, and {login}",
        "unauthorized": f"{where} refuses the image {image} (unauthorized); {login}",
        "missing": f"the image {image} does not exist in {where}; check its name and tag",
        "engine": f"{engine.name} stopped answering while pulling {image}; see: sudo systemctl status {engine.name}",
        "network": f"{where} cannot be reached for the image {image} ({last}); check its name and the node's network",
    }.get(cause, f"the image {image} cannot be pulled: {last}")


def ensure(
    engine: Engine,
    container: Container,
    env: dict[str, str],
    *,
    report: Callable[[dict[str, int]], None],
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Have the image; its description (Config, Architecture, Id).

    Raises NodeError (start-failed) with one sentence.
    """
    image = container.image
    found = look(engine, image, env)
    if found is None or is_latest(image):
        failed = _run(container_argv.pull(engine, image), env, container.pull_timeout, report)
        if failed and found is not None:
            note(f"{explain(failed, engine, container)}; using the image that is there")
        elif failed:
            raise NodeError("start-failed", explain(failed, engine, container))
        found = look(engine, image, env) or {}
    wanted = ARCHITECTURES.get(engine.arch, engine.arch)
    has = str(found.get("Architecture") or wanted)
    if has != wanted:
        raise NodeError("start-failed", f"the image {image} is for {has}, this node is {wanted}; choose another image")
    return found
