"""A TCP proxy that delays each direction: a long line without loss, for benchmarks."""

from __future__ import annotations

import argparse
import asyncio
import contextlib

CHUNK = 1 << 18


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1024)

    async def deliver() -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()

    delivery = asyncio.create_task(deliver())
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            await queue.put((loop.time() + delay, data))
    await queue.put((loop.time() + delay, b""))
    with contextlib.suppress(OSError):
        await delivery


async def serve(listen: tuple[str, int], target: tuple[str, int], delay: float) -> asyncio.Server:
    """Relay connections to target; every byte arrives ``delay`` seconds later, in both directions."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 * delay)  # the round trip of TCP's own handshake
        try:
            far_reader, far_writer = await asyncio.open_connection(*target)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(_pump(reader, far_writer, delay), _pump(far_reader, writer, delay))
        finally:
            writer.close()
            far_writer.close()

    return await asyncio.start_server(relay, *listen)


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("listen", "listen_port", "target", "target_port", "milliseconds"):
        parser.add_argument(name, type=str if name in ("listen", "target") else int)
    args = parser.parse_args()
    target = (args.target, args.target_port)
    server = await serve((args.listen, args.listen_port), target, args.milliseconds / 1000)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
