"""`.dstack/profiles.yml`: policies under a name, which a run takes over where its own file says nothing.

Source: dstack's reference page of ``profiles.yml``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

from lambdactl.errors import SpecError

from .engine import At, ListOf, Struct, key
from .fields import SWITCH, TEXT, PolicyFields
from .nodes import Problem, compose, entries

T = TypeVar("T", bound=PolicyFields)
PLACES = (".dstack/profiles.yml", ".dstack/profiles.yaml")


@dataclass(frozen=True, kw_only=True)
class Profile(PolicyFields):
    """One profile; ``explicit`` holds the keys that it gives."""

    name: str = key(TEXT, "The profile's name.", required=True)
    default: bool = key(SWITCH, "Whether runs take it that name none.", default=False)
    explicit: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class _Profiles:
    profiles: tuple[Profile, ...] = key(
        ListOf(Struct(Profile, "profiles", check=lambda profile, at: _remember(profile, at))),
        "The profiles.",
        required=True,
    )


def _remember(profile: Profile, at: At) -> Profile:
    return replace(profile, explicit=frozenset(at.keys) - {"name", "default"})


_FILE = Struct(_Profiles, "profiles")


def find(folders: Iterable[Path]) -> Path | None:
    """The first file of profiles in these folders."""
    return next((folder / place for folder in folders for place in PLACES if (folder / place).is_file()), None)


def load(path: Path) -> tuple[Profile, ...]:
    """The profiles of a file.

    Raises:
        SpecError: the file cannot be read, or something in it is wrong.
    """
    try:
        return tuple(_FILE.read(compose(path.read_text(encoding="utf-8"))).profiles)
    except Problem as problem:
        raise SpecError(problem.sentence(), filename=str(path), line=problem.line) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"the file cannot be read: {error}", filename=str(path)) from None


def choose(profiles: Iterable[Profile], name: str | None, path: Path) -> Profile | None:
    """The profile of this name, else the default one.

    Raises:
        SpecError: there is none of this name.
    """
    known = {profile.name: profile for profile in profiles}
    if name is None:
        return next((profile for profile in known.values() if profile.default), None)
    if name not in known:
        raise SpecError(f"there is no profile {name}; there are: {', '.join(known) or 'none'}.", filename=str(path))
    return known[name]


def apply(spec: T, profile: Profile, given: frozenset[str]) -> T:
    """The run with the profile's policies where its own file has none.

    Args:
        given: the top-level keys of the run's file.
    """
    names = {field.name for field in fields(PolicyFields)} & profile.explicit - given
    return replace(spec, **{name: getattr(profile, name) for name in names})


def keys_of(text: str) -> frozenset[str]:
    """The top-level keys of a file's text."""
    return frozenset(name for name, _, _ in entries(compose(text)))
