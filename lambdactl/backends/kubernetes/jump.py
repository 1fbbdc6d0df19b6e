"""The jump pod: sshd behind a NodePort, for SSH from outside; made only where `proxy_jump` is configured.

A Deployment that owns all the rest: a Secret with the pod's host key (it survives the pod, so that clients know it
again), a Secret with one line for each user's key (forwarding only, no shell), a ConfigMap with sshd's configuration,
and the Service. Everything is idempotent; a key is there once or not at all.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lambdactl import __version__
from lambdactl.errors import CapacityError, SpecError

from .errors import AlreadyExists, Conflict, Invalid
from .labels import COMPONENT, MANAGED_BY, MANAGER
from .resources import CONFIGMAPS, DEPLOYMENTS, NODES, PODS, SECRETS, SERVICES, Resource

if TYPE_CHECKING:
    from .client import Client
    from .http import Object

NAME = "lambdactl-jump"
KEYS = f"{NAME}-keys"
HOST_KEY = f"{NAME}-host"
IMAGE = f"lambdactl/base:{__version__}"
"""The project's default image (images/Dockerfile), which has sshd."""
PORT = 2222
FOLDER = "/lambdactl/jump"
AUTHORIZED = f"{FOLDER}/keys/authorized_keys"
READY_WITHIN = 90.0
REACHED_WITHIN = 20.0
SELECTOR = f"{MANAGED_BY}={MANAGER},{COMPONENT}=jump"
_LABELS = {MANAGED_BY: MANAGER, COMPONENT: "jump"}
_OPTIONS = 'restrict,port-forwarding,command="/bin/false"'

_SSHD = f"""\
Port {PORT}
HostKey {FOLDER}/host/key
AuthorizedKeysFile {AUTHORIZED}
PidFile none
StrictModes no
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding local
AllowAgentForwarding no
AllowStreamLocalForwarding no
X11Forwarding no
PermitTunnel no
PermitTTY no
MaxStartups 500
MaxSessions 500
ClientAliveInterval 30
"""
_START = f"""\
for sshd in "$(command -v sshd)" /usr/sbin/sshd /usr/local/sbin/sshd; do [ -x "$sshd" ] && break; done
[ -x "$sshd" ] || {{ echo 'the image has no sshd (package openssh-server)'; sleep 5; exit 1; }}
mkdir -p /run/sshd /var/empty
exec "$sshd" -D -e -f {FOLDER}/etc/sshd_config
"""


@dataclass(frozen=True, slots=True)
class Jump:
    """A jump pod that is ready.

    Attributes:
        hostname: an external address of a node.
        port: the NodePort.
        host_key: the pod's public host key, ``ssh-ed25519 ...``.
    """

    hostname: str
    port: int
    host_key: str


async def ensure(client: Client, public_key: str, who: str) -> Jump:
    """Make the jump pod where it is missing, let a key in, and wait until both are so.

    Args:
        client: the cluster; its target configures `proxy_jump`.
        public_key: the user's, ``ssh-ed25519 AAAA...``.
        who: the user, for people who look at the list of keys.

    Raises:
        SpecError: the port is not usable, or no address of a node is known.
        CapacityError: the pod does not become ready; the sentence says why.
        APIError: the cluster refuses.
    """
    owner = await _make(client, DEPLOYMENTS, _deployment(client))
    await _make(client, CONFIGMAPS, _named(NAME, owner) | {"data": {"sshd_config": _SSHD}})
    await _make(client, SECRETS, _host_secret(owner))
    await _make(client, SECRETS, _named(KEYS, owner) | {"data": {"authorized_keys": ""}})
    service = await _service(client, owner)
    await allow(client, public_key, who)
    pod = await _ready(client)
    await _known(client, pod, public_key)
    secret = await client.get(SECRETS, HOST_KEY)
    host_key = base64.b64decode(secret["data"]["public"]).decode().strip()
    return Jump(await _address(client, pod), int(service["spec"]["ports"][0]["nodePort"]), host_key)


async def reached(jump: Jump) -> Jump:
    """Wait until the NodePort leads to the pod: the nodes' proxies learn of it a moment after it is ready.

    Raises:
        CapacityError: it does not, from here.
    """
    deadline = time.monotonic() + REACHED_WITHIN
    while True:
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(jump.hostname, jump.port), 5)
        except (OSError, TimeoutError) as error:
            if time.monotonic() < deadline:
                await asyncio.sleep(0.5)
                continue
            raise CapacityError(
                f"the jump pod {NAME} runs, but {jump.hostname} does not take connections to its port {jump.port} "
                f"({error or 'no answer'}); let the port in through the firewall, or give `proxy_jump.hostname` an "
                "address of a node that is reached from here."
            ) from None
        writer.close()
        return jump


async def existing(client: Client, public_key: str) -> Jump | None:
    """The jump pod, where it is there, is ready and lets this key in; nothing is made."""
    secret, host = await client.find(SECRETS, KEYS), await client.find(SECRETS, HOST_KEY)
    service = await client.find(SERVICES, NAME)
    if secret is None or host is None or service is None:
        return None
    lines = base64.b64decode((secret.get("data") or {}).get("authorized_keys", "")).decode().splitlines()
    pods = [pod for pod in (await client.list(PODS, labels=SELECTOR)).items if _is(pod, "Ready")]
    if not pods or not _holds(lines, public_key):
        return None
    port, host_key = int(service["spec"]["ports"][0]["nodePort"]), base64.b64decode(host["data"]["public"]).decode()
    return Jump(await _address(client, pods[0]), port, host_key.strip())


async def allow(client: Client, public_key: str, who: str) -> None:
    """Let a key in; once, however often it is asked for."""
    entry = f"{_OPTIONS} {' '.join(public_key.split()[:2])} {_plain(who)}"
    await _edit(client, lambda lines: lines if _holds(lines, public_key) else [*lines, entry])


async def leave(client: Client, public_key: str) -> bool:
    """Take a key away, and the jump pod with the last one. Whether anything of the jump pod is left."""
    if await client.find(SECRETS, KEYS) is None:
        await client.delete(DEPLOYMENTS, NAME)
        return False
    blob = public_key.split()[1]
    left = await _edit(client, lambda lines: [line for line in lines if blob not in line.split()])
    if not left:
        await client.delete(DEPLOYMENTS, NAME)
    return bool(left)


async def _edit(client: Client, change: Any) -> list[str]:
    """Read, change and write the list of keys, again where somebody else has written meanwhile."""
    for _ in range(10):
        secret = await client.get(SECRETS, KEYS)
        lines = base64.b64decode((secret.get("data") or {}).get("authorized_keys", "")).decode().splitlines()
        wanted = change(lines)
        if wanted == lines:
            return lines
        text = "".join(f"{line}\n" for line in wanted)
        try:
            await client.replace(SECRETS, KEYS, secret | {"data": {"authorized_keys": _encoded(text)}})
        except Conflict:
            continue
        return list(wanted)
    raise CapacityError(f"the Secret {KEYS} is changed by others all the time; try again.")


def _holds(lines: list[str], public_key: str) -> bool:
    return any(public_key.split()[1] in line.split() for line in lines)


def _plain(who: str) -> str:
    return "".join(c if c.isalnum() or c in "@.-_" else "_" for c in who)[:64]


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def _make(client: Client, resource: Resource, body: Mapping[str, Any]) -> Object:
    """The object as it is, or as it was made just now, by us or by somebody else."""
    body = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
    name = body["metadata"]["name"]
    found = await client.find(resource, name)
    if found is not None:
        return found
    try:
        return await client.create(resource, body)
    except AlreadyExists:
        return await client.get(resource, name)


def _named(name: str, owner: Mapping[str, Any] | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "labels": _LABELS}
    if owner is not None:
        reference = {"apiVersion": DEPLOYMENTS.api_version, "kind": DEPLOYMENTS.kind, "name": NAME}
        metadata["ownerReferences"] = [reference | {"uid": owner["metadata"]["uid"]}]
    return {"metadata": metadata}


def _host_secret(owner: Mapping[str, Any]) -> dict[str, Any]:
    import asyncssh

    key = asyncssh.generate_private_key("ssh-ed25519", comment=NAME)
    private, public = key.export_private_key("openssh").decode(), key.export_public_key("openssh").decode()
    return _named(HOST_KEY, owner) | {"data": {"key": _encoded(private), "public": _encoded(public)}}


async def _service(client: Client, owner: Mapping[str, Any]) -> Object:
    """The NodePort Service, on the configured port."""
    jump = client.target.proxy_jump
    wanted = None if jump is None else jump.port
    port: dict[str, Any] = {"name": "ssh", "port": 22, "targetPort": PORT, "protocol": "TCP"}
    if wanted is not None:
        port["nodePort"] = wanted
    spec = {"type": "NodePort", "selector": _LABELS, "ports": [port]}
    try:
        found = await _make(client, SERVICES, _named(NAME, owner) | {"spec": spec})
        if wanted is not None and found["spec"]["ports"][0].get("nodePort") != wanted:
            found = await client.patch(SERVICES, NAME, {"spec": {"ports": [port]}})
    except Invalid as error:
        if "nodePort" not in error.said:
            raise
        why = "is taken by another Service" if "allocated" in error.said else "is not one of the cluster's NodePorts"
        raise SpecError(
            f"the port {wanted} of `proxy_jump` {why}; set another one, which the firewall lets in.",
            filename=client.target.origin,
        ) from None
    return found


def _deployment(client: Client) -> dict[str, Any]:
    mounts: dict[str, dict[str, Any]] = {
        "etc": {"configMap": {"name": NAME}},
        "host": {"secret": {"secretName": HOST_KEY, "defaultMode": 0o400}},
    }
    mounts["keys"] = {"secret": {"secretName": KEYS, "defaultMode": 0o444}}
    container = {
        "name": "sshd",
        "image": client.target.jump_image or client.target.image or IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", _START],
        "ports": [{"containerPort": PORT}],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        "volumeMounts": [{"name": name, "mountPath": f"{FOLDER}/{name}", "readOnly": True} for name in mounts],
    }
    cpu_nodes = {"matchExpressions": [{"key": "nvidia.com/gpu.present", "operator": "DoesNotExist"}]}
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
        "volumes": [{"name": name, **source} for name, source in mounts.items()],
        # Rather not on a GPU node, but there where all are.
        "affinity": {
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": cpu_nodes}]
            }
        },
        "tolerations": [{"key": key, "operator": "Exists"} for key in ("nvidia.com/gpu", "amd.com/gpu")],
    }
    return _named(NAME, None) | {
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": _LABELS},
            "template": {"metadata": {"labels": _LABELS}, "spec": pod},
        }
    }


async def _ready(client: Client) -> Object:
    """The pod, once it is ready; CapacityError with what it waits for when that takes too long."""
    last: Object = {}
    try:
        async with asyncio.timeout(READY_WITHIN), aclosing(client.watch(PODS, labels=SELECTOR)) as events:
            async for event in events:
                if event.type in ("ADDED", "MODIFIED") and "deletionTimestamp" not in event.object["metadata"]:
                    last = event.object
                    if _is(last, "Ready"):
                        return last
    except TimeoutError:
        pass
    raise CapacityError(
        f"the jump pod {NAME} does not become ready: {_waits_for(last)}; see `kubectl describe pod -l {SELECTOR}`."
    )


def _is(pod: Mapping[str, Any], condition: str) -> bool:
    found = (pod.get("status") or {}).get("conditions") or []
    return any(c.get("type") == condition and c.get("status") == "True" for c in found)


def _waits_for(pod: Mapping[str, Any]) -> str:
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or []:
        state = container.get("state") or {}
        why = state.get("waiting") or state.get("terminated")
        if why:
            return ": ".join(str(why[part]).rstrip(".") for part in ("reason", "message") if why.get(part))
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return str(condition.get("message") or condition.get("reason")).rstrip(".")
    return "nothing answers on its port" if status.get("phase") == "Running" else "it has not been started"


async def _known(client: Client, pod: Object, public_key: str) -> None:
    """Wait until the pod sees the key: Kubernetes takes up to a minute for a changed Secret, less when it is told."""
    name, blob = pod["metadata"]["name"], public_key.split()[1]
    command = ["grep", "-qF", blob, AUTHORIZED]
    if (await client.exec(name, command)).rc == 0:
        return
    digest = {"metadata": {"annotations": {"lambdactl.dev/keys": blob[-16:].replace("/", "_").replace("+", "-")}}}
    await client.patch(PODS, name, digest)  # the kubelet looks at a pod that has changed, and at its Secrets
    for _ in range(int(READY_WITHIN)):
        await asyncio.sleep(1)
        if (await client.exec(name, command)).rc == 0:
            return
    raise CapacityError(f"the jump pod {NAME} does not get the new key; try again in a minute.")


async def _address(client: Client, pod: Object) -> str:
    """The configured address, else an external one of the pod's node, else of any node."""
    jump = client.target.proxy_jump
    if jump is not None and jump.hostname:
        return jump.hostname
    own = pod["spec"].get("nodeName")
    found: dict[str, str] = {}
    for node in (await client.list(NODES)).items:
        for address in (node.get("status") or {}).get("addresses") or []:
            text = str(address.get("address"))
            if address.get("type") == "ExternalIP" and re.fullmatch(r"[A-Za-z0-9:][A-Za-z0-9.:-]*", text):
                found.setdefault(node["metadata"]["name"], text)
    if not found:
        raise SpecError(
            "no node tells an external address by which the jump pod could be reached; set `proxy_jump.hostname`.",
            filename=client.target.origin,
        )
    return found.get(own or "") or next(iter(found.values()))
