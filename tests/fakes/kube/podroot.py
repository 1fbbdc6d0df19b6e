"""What a container of the process mode sees: its root folder, volumes, environment and command.

The root is an overlay over the image's folder ("/" is this machine), so that mount points and whatever the container
writes exist for it alone, in a mount namespace of its own.
"""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import downward, volumefiles
from .quantity import amount
from .store import Object, Store

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class NotYet(Exception):
    """The pod cannot start; the kubelet tries again. The text is the event's."""


@dataclass
class Volumes:
    """A pod's volumes as folders of this machine; ``mounted`` are to be unmounted at the end."""

    folder: Path
    paths: dict[str, Path]
    mounted: list[Path]
    sizes: dict[str, str]


def prepare_volumes(store: Store, pod: Object, folder: Path, node_folder: Path) -> Volumes:
    """Make a pod's volumes; NotYet when one is missing."""
    found = Volumes(folder, {}, [], {})
    for volume in pod["spec"].get("volumes") or []:
        path = folder / "volumes" / volume["name"]
        path.mkdir(parents=True, exist_ok=True)
        found.paths[volume["name"]] = path
        if "configMap" in volume:
            _files(store, pod, "configmaps", volume["configMap"], volume["configMap"]["name"], path)
        elif "secret" in volume:
            _files(store, pod, "secrets", volume["secret"], volume["secret"]["secretName"], path)
        elif "projected" in volume:
            # One payload of all sources.
            held: volumefiles.Files = {}
            for source in volume["projected"]["sources"]:
                for kind, plural in (("configMap", "configmaps"), ("secret", "secrets")):
                    if kind in source:
                        options = {"defaultMode": volume["projected"].get("defaultMode", 0o644)} | source[kind]
                        held |= _held(store, pod, plural, options, source[kind]["name"], path)
            volumefiles.write(path, "projected", held)
        elif "emptyDir" in volume:
            path.chmod(0o1777)
            if volume["emptyDir"].get("medium") == "Memory":
                limit = volume["emptyDir"].get("sizeLimit")
                found.sizes[volume["name"]] = str(int(amount(limit))) if limit else ""
        elif "downwardAPI" in volume:
            downward.write(pod, volume, path)
        elif "hostPath" in volume:
            found.paths[volume["name"]] = _host_path(volume["hostPath"], node_folder, volume["name"])
        elif "persistentVolumeClaim" in volume:
            # Of all nodes: below the folder that theirs are in.
            claim = f"{pod['metadata']['namespace']}-{volume['persistentVolumeClaim']['claimName']}"
            found.paths[volume["name"]] = node_folder.parent.parent / "claims" / claim
            found.paths[volume["name"]].mkdir(parents=True, exist_ok=True)
        else:
            raise NotYet(f'MountVolume.SetUp failed for volume "{volume["name"]}" : the fake has no such volumes')
    return found


def refresh(store: Store, pod: Object, volumes: Volumes) -> None:
    """Bring the files of ConfigMaps and Secrets up to date, as the kubelet does when it looks at the pod again."""
    for volume in pod["spec"].get("volumes") or []:
        path = volumes.paths.get(volume["name"])
        if path is None or not path.is_dir():
            continue
        if "configMap" in volume:
            _files(
                store, pod, "configmaps", {**volume["configMap"], "optional": True}, volume["configMap"]["name"], path
            )
        elif "secret" in volume:
            _files(store, pod, "secrets", {**volume["secret"], "optional": True}, volume["secret"]["secretName"], path)


def _files(store: Store, pod: Object, plural: str, options: Object, name: str, path: Path) -> None:
    if options.get("optional") and store.find(plural, pod["metadata"]["namespace"], name) is None:
        return
    volumefiles.write(path, plural, _held(store, pod, plural, options, name, path))


def _held(store: Store, pod: Object, plural: str, options: Object, name: str, path: Path) -> volumefiles.Files:
    held = store.find(plural, pod["metadata"]["namespace"], name)
    if held is None:
        if options.get("optional"):
            return {}
        kind = plural.removesuffix("s")
        raise NotYet(f'MountVolume.SetUp failed for volume "{path.name}" : {kind} "{name}" not found')
    content = {key: text.encode() for key, text in (held.get("data") or {}).items()}
    if plural == "secrets":
        content = {key: base64.b64decode(text) for key, text in content.items()}
    content |= {key: base64.b64decode(text) for key, text in (held.get("binaryData") or {}).items()}
    items = options.get("items") or [{"key": key, "path": key} for key in content]
    mode = options.get("defaultMode") or 0o644
    return {i["path"]: (content[i["key"]], i.get("mode") or mode) for i in items}


def _host_path(options: Object, node_folder: Path, name: str) -> Path:
    """Every node has a file system of its own below the fake's folder."""
    path = node_folder / options["path"].lstrip("/")
    kind = options.get("type", "")
    if "OrCreate" not in kind and not path.exists() and kind:
        raise NotYet(
            f'MountVolume.SetUp failed for volume "{name}" : hostPath type check failed: {options["path"]} is not'
        )
    if kind == "FileOrCreate":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    elif not path.exists():
        path.mkdir(parents=True)
    return path


def environment(store: Store, pod: Object, container: Object) -> dict[str, str]:
    """The container's variables; NotYet (CreateContainerConfigError) when one's source is missing."""
    result = {"PATH": PATH, "HOSTNAME": hostname(pod), "HOME": "/root"}
    for source in container.get("envFrom") or []:
        for kind, plural in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
            if kind in source:
                data = _data(store, pod, plural, source[kind]["name"])
                result |= {source.get("prefix", "") + key: value for key, value in data.items()}
    for entry in container.get("env") or []:
        if "valueFrom" in entry:
            result[entry["name"]] = _value_from(store, pod, entry["valueFrom"])
        else:
            result[entry["name"]] = expand(entry.get("value", ""), result)
    return result


def _value_from(store: Store, pod: Object, source: Object) -> str:
    for kind, plural in (("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")):
        if kind in source:
            return _data(store, pod, plural, source[kind]["name"])[source[kind]["key"]]
    path = source["fieldRef"]["fieldPath"]
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return str((pod["metadata"].get(match[1]) or {}).get(match[2], ""))
    found: Any = pod
    for step in path.split("."):
        found = found.get(step, "") if isinstance(found, dict) else ""
    return str(found)


def _data(store: Store, pod: Object, plural: str, name: str) -> dict[str, str]:
    held = store.find(plural, pod["metadata"]["namespace"], name)
    if held is None:
        raise NotYet(f'{plural.removesuffix("s")} "{name}" not found')
    data = held.get("data") or {}
    return {k: base64.b64decode(v).decode() for k, v in data.items()} if plural == "secrets" else dict(data)


def expand(text: str, env: dict[str, str]) -> str:
    """``$(NAME)``, and ``$$(NAME)`` for the text itself."""
    return re.sub(
        r"\$(\$?)\(([A-Za-z_][\w.-]*)\)",
        lambda m: f"$({m[2]})" if m[1] else env.get(m[2], m[0]),
        text,
    )


def hostname(pod: Object) -> str:
    return str(pod["spec"].get("hostname") or pod["metadata"]["name"])[:63]


def script(pod: Object, container: Object, image: Path, folder: Path, volumes: Volumes, env: dict[str, str],
           shares: Sequence[Path | tuple[Path, str]] = ()) -> str:  # fmt: skip
    """The shell script that becomes the container, as the first process of its namespaces."""
    root = folder / "root"
    q = shlex.quote
    lines = [
        "exec 2>&1",
        "set -e", f"hostname {q(hostname(pod))}", f"mount -t tmpfs none {q(str(folder))}",
        f"mkdir -p {q(str(folder))}/u {q(str(folder))}/w {q(str(root))}",
        f"mount -t overlay overlay -o lowerdir={q(str(image))},upperdir={folder}/u,workdir={folder}/w {q(str(root))}",
        f"cd {q(str(root))}", "mount --rbind /dev dev", "mount --rbind /sys sys", "mount -t proc proc proc",
        "for d in tmp run root dev/shm; do mkdir -p $d; mount -t tmpfs none $d; done", "chmod 1777 tmp dev/shm",
        "chmod 700 root", "mkdir -p run/lock",
    ]  # fmt: skip
    for share in shares:
        source, target = share if isinstance(share, tuple) else (share, str(share))
        at = q("." + target)
        lines += [f"mkdir -p {at}", f"mount --bind {q(str(source))} {at}", f"mount -o remount,bind,ro {at}"]
    aliases = [f"{pod['status']['podIP']}\t{hostname(pod)}", "127.0.0.1\tlocalhost"]
    aliases += [f"{a['ip']}\t{' '.join(a.get('hostnames') or [])}" for a in pod["spec"].get("hostAliases") or []]
    lines += ["rm -f etc/hosts", f"printf '%s\\n' {' '.join(q(alias) for alias in aliases)} > etc/hosts"]
    for mount in container.get("volumeMounts") or []:
        lines += _mount(mount, volumes)
    if path := container.get("terminationMessagePath"):
        message = shlex.quote(str(folder.parent / f"{container['name']}.message"))
        at = shlex.quote(f".{path}")
        lines += [f"mkdir -p $(dirname {at})", f": > {at}", f": > {message}", f"chmod 666 {message}"]
        lines.append(f"mount --bind {message} {at}")
    user = (container.get("securityContext") or {}).get(
        "runAsUser", (pod["spec"].get("securityContext") or {}).get("runAsUser")
    )
    group = (container.get("securityContext") or {}).get("runAsGroup", user)
    words = [expand(w, env) for w in [*(container.get("command") or []), *(container.get("args") or [])]]
    words = words or ["sleep", "infinity"]
    inner = f"cd {q(container.get('workingDir') or '/')} && exec {' '.join(q(word) for word in words)}"
    exports = " ".join(q(f"{name}={value}") for name, value in env.items())
    spec = f"--userspec={user}:{group} " if user else ""
    session = "setsid --ctty " if container.get("tty") else ""
    lines.append(f"exec {session}chroot {spec}. /usr/bin/env -i {exports} /bin/sh -c {q(inner)}")
    return "\n".join(lines) + "\n"


def _mount(mount: Object, volumes: Volumes) -> list[str]:
    source = volumes.paths[mount["name"]]
    if mount.get("subPath"):
        source = source / mount["subPath"]
        if not source.exists():
            source.mkdir(parents=True)
    at, from_ = shlex.quote("." + mount["mountPath"]), shlex.quote(str(source))
    make = f"mkdir -p {at}" if source.is_dir() else f"mkdir -p $(dirname {at}); [ -e {at} ] || : > {at}"
    lines = [make, f"mount --bind {from_} {at}"]
    return [*lines, f"mount -o remount,bind,ro {at}"] if mount.get("readOnly") else lines
