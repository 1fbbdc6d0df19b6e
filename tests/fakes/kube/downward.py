"""Downward API volumes: fields of a pod as files, written again when the pod changes, as a kubelet does."""

from __future__ import annotations

import re
from pathlib import Path

from .store import Object


def write(pod: Object, volume: Object, path: Path) -> None:
    """Bring a volume's files up to date."""
    if not path.is_dir():
        return  # the pod is being cleaned up
    for item in volume["downwardAPI"].get("items") or []:
        text, target = _field(pod, item["fieldRef"]["fieldPath"]), path / item["path"]
        if not target.is_file() or target.read_text() != text:
            new = path / f".{item['path']}.new"
            new.write_text(text)
            new.chmod(0o644)
            new.rename(target)


def _field(pod: Object, path: str) -> str:
    match = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)
    if match:
        return str((pod["metadata"].get(match[1]) or {}).get(match[2], ""))
    return str(pod["metadata"].get(path.removeprefix("metadata."), ""))
