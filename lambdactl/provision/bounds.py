"""Which lines of ansible-core the playbooks work with; those of pyproject.toml and meta/runtime.yml."""

from __future__ import annotations

from lambdactl.errors import LambdactlError

OLDEST = (2, 18)
BEFORE = (2, 22)


def check_core(version: str | None) -> None:
    """Refuse an ansible-core that nobody has tried, before it fails in a way that nobody understands.

    Args:
        version: Ansible's own `ansible_version.full`, such as "2.19.14" or "2.22.0rc1"; None passes.

    Raises:
        LambdactlError: it is too old or too new.
    """
    if version is None:
        return
    line = tuple(int(part) for part in version.split(".")[:2])
    if OLDEST <= line < BEFORE:
        return
    oldest, before = (".".join(map(str, bound)) for bound in (OLDEST, BEFORE))
    raise LambdactlError(
        f"ansible-core {version} is too {'old' if line < OLDEST else 'new'}: lambdactl works with {oldest} and newer, "
        f"before {before}.",
        remedy=f"Install another: pip install 'ansible-core>={oldest},<{before}'.",
    )
