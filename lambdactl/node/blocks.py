"""Blocks: the equal parts of a node that single-node runs take. Pure arithmetic on leases; the lock is lease.py's.

Block i of N has the i-th of N equal slices of the node's GPUs (by index) and of its CPUs (in the order of the machine's
topology). Fleet files may change between two runs, so leases of different N are compared as intervals [i/N, (i+1)/N).
A request is "all" (the whole node), a number of GPUs (by index, without a share of CPUs and memory), or (blocks, of).
"""

from __future__ import annotations

from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, Union

    Request = Union[str, int, "tuple[int, int]"]

MOST = 4096


def parse(blocks: object, of: object) -> tuple[int, int]:
    """(blocks, of) of a request. Raises NodeError (bad-request)."""
    if type(blocks) is not int or type(of) is not int or not 1 <= blocks <= of <= MOST:
        words = f"{str(blocks)[:20]} of {str(of)[:20]}"
        raise NodeError("bad-request", f"blocks: {words} is not possible, allowed is 1 of 1 to {MOST} of {MOST}")
    return blocks, of


def check(cpus: int, gpus: int, of: int) -> None:
    """Raises NodeError (bad-request) when the node cannot be divided evenly (dstack's rule)."""
    if cpus % of or gpus % of:
        raise NodeError(
            "bad-request",
            f"cannot split into {of} blocks: {cpus} CPUs and {gpus} GPUs are not both divisible by {of}; "
            "correct 'blocks' in the fleet file",
        )


def part(total: int, index: int, of: int) -> range:
    """The items (GPU indices, places in a list of CPUs) of block `index` of `of`."""
    return range(index * total // of, (index + 1) * total // of)


def _touched(of: int, total: int, lease: dict[str, Any]) -> Iterable[int]:
    """The blocks, of `of`, that a lease touches on a node with `total` GPUs."""
    other, taken = lease.get("of"), lease.get("blocks") or ()
    if lease["whole"]:
        return range(of)
    if other == of:
        return list(taken)
    if not other:
        return [gpu * of // total for gpu in lease["gpus"]]
    return [i for i in range(of) if any(i * other < (b + 1) * of and b * of < (i + 1) * other for b in taken)]


def free(of: int, total: int, leases: Sequence[dict[str, Any]]) -> list[int]:
    """The blocks, of `of`, of a node with `total` GPUs that no lease touches."""
    taken = {index for lease in leases for index in _touched(of, total, lease)}
    return [index for index in range(of) if index not in taken]


def _gaps(indices: list[int]) -> list[list[int]]:
    """Runs of neighbours among sorted indices."""
    found: list[list[int]] = []
    for index in indices:
        if found and found[-1][-1] == index - 1:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def choose(count: int, indices: list[int]) -> list[int] | None:
    """`count` of the free blocks: neighbours out of the smallest gap that has them, else the first ones; or None.

    Neighbours share a NUMA node and NVLink more often, and small gaps are filled first, so that large ones stay whole.
    """
    if count > len(indices):
        return None
    fitting = [gap for gap in _gaps(indices) if len(gap) >= count]
    return min(fitting, key=len)[:count] if fitting else indices[:count]


def grant(request: Request, total: int, leases: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What a request gets beside these leases, as a lease's fields `whole, gpus, blocks, of`; None: it is not free."""
    if isinstance(request, tuple):
        count, of = request
        chosen = choose(count, free(of, total, leases))
        if chosen is None:
            return None
        gpus = [gpu for index in chosen for gpu in part(total, index, of)]
        return {"whole": False, "gpus": gpus, "blocks": chosen, "of": of}
    if request == "all":
        return None if leases else {"whole": True, "gpus": list(range(total)), "blocks": [], "of": None}
    if any(lease["whole"] for lease in leases):
        return None
    taken = {gpu for lease in leases for gpu in lease["gpus"]}
    left = [gpu for gpu in range(total) if gpu not in taken]
    wanted = int(request)
    return None if wanted > len(left) else {"whole": False, "gpus": left[:wanted], "blocks": [], "of": None}


def holders(request: Request, total: int, leases: Sequence[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """(a clause that says what is free, the leases that are in the way) for a request that `grant` refused."""
    whole = [lease for lease in leases if lease["whole"]]
    if request == "all":
        return "the node is in use by ", list(leases)
    if whole:
        return "the whole node is in use by ", whole
    if isinstance(request, tuple):
        count, of = request
        text = f"{count} of {of} blocks wanted, {len(free(of, total, leases))} are free; the others are in use by "
        return text, list(leases)
    left = total - len({gpu for lease in leases for gpu in lease["gpus"]})
    text = f"{request} GPUs wanted, {left} of {total} are free; the others are in use by "
    return text, [lease for lease in leases if lease["gpus"]]
