"""Bringing a run's files and repository to its ranks, which wait for their start meanwhile.

Each tree is one tar archive, in pieces (archive.py) that the API's `exec` hands to a shell script in a rank
(container/receive.sh). Where there is a files volume (filestore.py), what it lacks goes there by one rank, and all
ranks take the trees from it. Otherwise the pieces go to one rank, and from there to the others by the SSH between them:
every rank that has them sends to one that has not, so that many ranks take as many rounds as their number has binary
digits. Ranks without SSH, or that others do not reach, are sent to by the API. A piece counts when its size and its
sha256 are right where it came to; what was cut or damaged is sent again, the rest is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lambdactl.errors import CapacityError, LambdactlError
from lambdactl.run.deliver import Progress
from lambdactl.transport.base import gather_all, relay

from .archive import LIST, PIECE, Item, Piece, archive, bundle, items
from .errors import APIError
from .filestore import FileStore
from .receiver import DAMAGED, Receiver, batches, full, refused, words_of

if TYPE_CHECKING:
    from lambdactl.run.content import RunContent

    from .client import Client
    from .settings import FilesVolume

AT_ONCE = 8
"""Ranks that are sent to at the same time: all bytes pass the API server."""
ASKED_AT_ONCE = 32
PASS = 128 << 20
"""Bytes that a rank passes on before it says so."""
_PASSES = 3
_TRIES = 2


async def deliver(
    client: Client,
    pods: Sequence[str],
    content: RunContent,
    image: str,
    *,
    files: FilesVolume | None = None,
    on_progress: Callable[[Progress], None],
    notify: Callable[[str], None] = lambda _text: None,
) -> Progress:
    """Bring everything to all of these pods.

    Args:
        files: the files volume that they mount.
        notify: gets a sentence when the volume cannot be used.

    Raises:
        LambdactlError: the image has no tar, a rank cannot place something, or the API stays out of reach.
        CapacityError: a node's disk is full.
    """
    delivery = _Delivery(Receiver(client), pods, items(content), image, on_progress)
    await delivery.run(files, notify)
    return delivery.progress


@dataclass
class _Rank:
    """One pod.

    Attributes:
        address: where the other ranks reach it by SSH, and it them; None: it has no SSH.
        lacks: the pieces that are still to be brought there; None: all.
        passed: bytes that have come from another rank.
    """

    pod: str
    address: str | None
    sums: bool
    lacks: set[str] | None = None
    passed: int = 0

    def wants(self, piece: Piece) -> bool:
        return self.lacks is None or piece.name in self.lacks

    def left(self, size: int) -> int:
        """Bytes that have not come yet, of so many (an archive is a little larger than what it holds)."""
        return max(0, size - self.passed)


class _Delivery:
    def __init__(
        self,
        receiver: Receiver,
        pods: Sequence[str],
        found: Sequence[Item],
        image: str,
        tell: Callable[[Progress], None],
    ) -> None:
        self._receiver, self._pods, self._items, self._image = receiver, pods, found, image
        self._tell = tell
        self._sending, self._asking = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(ASKED_AT_ONCE)
        self._size = sum(item.tree.size for item in found)
        self._most = 0  # what is to be sent from here: archives are a little larger than what they hold
        self.progress = Progress(0)

    async def run(self, files: FilesVolume | None, notify: Callable[[str], None]) -> None:
        ranks = await self._all(self._pods, self._begin, self._asking)
        if files is not None:
            await self._from_volume(ranks, files, notify)
        if wanting := [rank for rank in ranks if rank.lacks != set()]:
            await self._to(wanting, whole=all(rank.lacks is None for rank in wanting))
        await self._all(ranks, self._place, self._asking)

    async def _all(
        self, found: Sequence[Any], one: Callable[[Any], Coroutine[Any, Any, Any]], gate: asyncio.Semaphore
    ) -> list[Any]:
        async def gated(item: Any) -> Any:
            async with gate:
                return await one(item)

        return list((await gather_all({str(i): gated(item) for i, item in enumerate(found)})).values())

    async def _begin(self, pod: str) -> _Rank:
        done = await self._receiver.call(pod, "begin")
        said = done.stdout.decode("utf-8", "replace").split()
        if said[:1] == ["lacks"]:
            raise LambdactlError(
                f"the image {self._image} has no {said[1]}, which 'files' and 'repos' need; use an image that has it."
            )
        if done.rc or len(said) != 3:
            raise refused(pod, done)
        return _Rank(pod, said[1] if said[1] != "-" else None, said[2] != "-")

    # By the files volume.

    async def _from_volume(self, ranks: list[_Rank], files: FilesVolume, notify: Callable[[str], None]) -> None:
        """Put the trees there by the first rank, and have all take them; sets what each of them lacks then."""
        if not all(rank.sums for rank in ranks):
            notify(f"the image {self._image} has no sha256sum, so the files volume is not used.")
            return
        self.progress.total = self._most = self._size
        store = FileStore(self._receiver, ranks[0].pod, files, self._sent)
        try:
            trees = [await store.put(item) for item in self._items]
        except APIError:
            raise
        except LambdactlError as error:
            notify(f"the files volume is not used: {error}")
            return

        async def fetch(rank: _Rank) -> None:
            answer = await self._receiver.lines(rank.pod, "fetch", *trees)
            unknown = {index for index, tree in enumerate(trees) if ["unknown", tree] in answer}
            rank.lacks = None if unknown else {line[1] for line in answer if line[0] == "lacks"}

        await self._all(ranks, fetch, self._asking)
        self.progress.total = self.progress.sent

    # By the ranks themselves, and by the API.

    async def _to(self, ranks: list[_Rank], *, whole: bool) -> None:
        peers = [rank for rank in ranks if rank.address is not None] if whole else []
        others = peers[1:]
        direct = [rank for rank in ranks if rank not in others]
        self._most = self.progress.sent + self._size * len(direct)
        self.progress.total = self.progress.sent + self._size * len(ranks)
        listed = await self._send(direct)
        if others:
            await self._spread(peers[0], others, listed)

    async def _send(self, ranks: Sequence[_Rank]) -> list[Piece]:
        """From here to each of these what it lacks; all the pieces that there are."""
        listed: list[Piece] = []
        held: list[tuple[Piece, bytes]] = []
        for index, item in enumerate(self._items):
            made = archive(item)
            while (found := await asyncio.to_thread(next, made, None)) is not None:
                piece = replace(found[0], name=f"{index}.{found[0].name}")
                listed.append(piece)
                if not any(rank.wants(piece) for rank in ranks):
                    continue
                if held and sum(one.size for one, _ in held) + piece.size > PIECE:
                    await self._send_batch(ranks, held)
                    held = []
                held.append((piece, found[1]))
        if held:
            await self._send_batch(ranks, held)
        return listed

    async def _send_batch(self, ranks: Sequence[_Rank], held: list[tuple[Piece, bytes]]) -> None:
        whole = await asyncio.to_thread(bundle, held)

        async def one(rank: _Rank) -> None:
            mine = [(piece, data) for piece, data in held if rank.wants(piece)]
            if not mine:
                return
            data = whole if len(mine) == len(held) else bundle(mine)
            await self._receiver.lines(rank.pod, "parts", LIST, data=data)
            self._sent(sum(piece.size for piece, _ in mine))

        await self._all(ranks, one, self._sending)

    def _sent(self, amount: int) -> None:
        self.progress.sent = min(self.progress.sent + amount, self._most)
        self._tell(self.progress)

    async def _spread(self, first: _Rank, others: Sequence[_Rank], listed: list[Piece]) -> None:
        """Who has all sends to one that has not, until all have; ranks that are not reached get it from here."""
        rest, unreached, second = list(others), list[_Rank](), None
        # Where no rank reaches another (a network policy), as many tries say so, and the others go without one.
        while rest and second is None and len(unreached) < _TRIES:
            rank = rest.pop(0)
            if await self._pass_on(first, rank, listed):
                second = rank
            else:
                unreached.append(rank)
        if second is None:
            unreached += rest
        else:
            unreached += await relay([first, second], rest, lambda source, rank: self._pass_on(source, rank, listed))
        if unreached:
            self._most += sum(rank.left(self._size) for rank in unreached)
            await self._send(unreached)

    async def _pass_on(self, source: _Rank, rank: _Rank, listed: list[Piece]) -> bool:
        """Everything from rank to rank; what is still lacking where that cannot be is in `rank.lacks`."""
        rank.lacks = {piece.name for piece in listed}
        for part in batches([piece.size for piece in listed], PASS):
            if not await self._pass(source, rank, listed[part]):
                return False
            rank.lacks -= {piece.name for piece in listed[part]}
            passed = min(rank.left(self._size), sum(piece.size for piece in listed[part]))
            rank.passed += passed
            self.progress.passed_on += passed
            self._tell(self.progress)
        return True

    async def _pass(self, source: _Rank, rank: _Rank, pieces: Sequence[Piece]) -> bool:
        """From rank to rank; False where that cannot be."""
        data = "".join(piece.line for piece in pieces).encode()
        for attempt in range(_PASSES):
            try:
                done = await self._receiver.call(source.pod, "pass", rank.address or "", data=data, once=True)
            except LambdactlError:
                await asyncio.sleep(1.0 + attempt)
                continue
            if not done.rc:
                return True
            if full(words_of(done)):
                raise CapacityError(str(refused(rank.pod, done)))
            if done.rc != DAMAGED:
                return False
        return False

    async def _place(self, rank: _Rank) -> None:
        done = await self._receiver.call(rank.pod, "place", once=True)
        if done.rc:
            raise refused(rank.pod, done)
