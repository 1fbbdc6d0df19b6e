"""`utilization_policy`: the end of a run whose GPUs idle. JobSpec `utilization`: {"min": percent, "window": seconds}.

Each node looks at the GPUs of its own rank with nvidia-smi; when one stays below the limit for the whole window,
the run is stopped. Where nvidia-smi gives no answer nothing is known, and a window begins anew.
"""

from __future__ import annotations

import os
import time

from . import programs
from .errors import NodeError
from .launch import find_user, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from .loop import Loop

INTERVAL = 10.0  # seconds between two looks, less for short windows
TIMEOUT = 30.0  # seconds after which a nvidia-smi that hangs is given up
QUERY = ["nvidia-smi", "--query-gpu=index,utilization.gpu", "--format=csv,noheader,nounits"]


class Policy:
    """The limit: `least` percent for `window` seconds."""

    def __init__(self, raw: object) -> None:
        if not isinstance(raw, dict):
            raise NodeError("bad-request", "job: utilization is {min, window}")
        least, window = raw.get("min"), raw.get("window")
        if type(least) is not int or not 0 <= least <= 100:
            raise NodeError("bad-request", f"job: utilization.min is {str(least)[:40]!r}, allowed is 0 to 100")
        if isinstance(window, bool) or not isinstance(window, (int, float)) or not 0 < window < 1e9:
            raise NodeError("bad-request", f"job: utilization.window is {str(window)[:40]!r}, allowed are seconds")
        self.least: int = least
        self.window = float(window)


def parse(raw: Any) -> Policy | None:
    """JobSpec's `utilization`, or None."""
    return None if raw is None else Policy(raw)


class Window:
    """How long each GPU has been below the limit; pure, the caller brings the clock."""

    def __init__(self, policy: Policy, now: float) -> None:
        self._policy = policy
        self._start = now
        self._last = now
        self._busy: dict[int, float] = {}

    def add(self, now: float, use: Mapping[int, int], patience: float) -> list[int]:
        """Take in the use of each GPU in percent; the GPUs that were below the limit for the whole window.

        After more than `patience` seconds without any news the window begins anew.
        """
        if now - self._last > patience:
            self._start, self._busy = now, {}
        self._last = now
        self._busy.update({gpu: now for gpu, percent in use.items() if percent >= self._policy.least})
        return [gpu for gpu in use if now - max(self._busy.get(gpu, 0.0), self._start) >= self._policy.window]


def read(output: bytes) -> dict[int, int]:
    """{index: percent} from nvidia-smi's lines; those without a number (MIG: [N/A]) are left out."""
    found = {}
    for line in output.decode("utf-8", "replace").splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
            found[int(words[0])] = int(words[1])
    return found


class Watch:
    """Looks again and again from the supervisor's loop; calls `on_idle(sentence)` once."""

    def __init__(self, loop: Loop, policy: Policy, gpus: list[int] | None, on_idle: Callable[[str], None]) -> None:
        self._loop = loop
        self._policy = policy
        self._gpus = gpus
        self._on_idle = on_idle
        self._window = Window(policy, time.monotonic())
        self._interval = min(INTERVAL, policy.window / 5)
        self._output = b""
        self._reader = -1
        self.pid: int | None = None
        self._timer = loop.later(0, self._look)

    def _look(self) -> None:
        program = programs.find(QUERY[0]) or QUERY[0]
        reader, theirs = os.pipe2(os.O_CLOEXEC)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.pid = spawn(
                [program, *QUERY[1:]], find_user(str(os.geteuid())), dict(os.environ), (null, theirs, null)
            )
        except NodeError:  # no nvidia-smi: nothing is known
            os.close(reader)
            self._timer = self._loop.later(self._interval, self._look)
            return
        finally:
            os.close(theirs)
            os.close(null)
        self._reader, self._output = reader, b""
        self._loop.watch(reader, self._read)
        self._timer = self._loop.later(TIMEOUT, self._give_up)

    def _read(self) -> None:
        data = os.read(self._reader, 65536)
        self._output += data
        if data:
            return
        self._end_look()
        use = read(self._output)
        if self._gpus is not None:
            use = {gpu: percent for gpu, percent in use.items() if gpu in self._gpus}
        idle = self._window.add(time.monotonic(), use, 5 * self._interval + TIMEOUT) if use else []
        if not idle:
            self._timer = self._loop.later(self._interval, self._look)
            return
        names = f"GPU {idle[0]} was" if len(idle) == 1 else f"GPUs {', '.join(map(str, idle))} were"
        self._on_idle(f"{names} below {self._policy.least}% for {self._policy.window:g} s")

    def _end_look(self) -> None:
        self._timer.cancel()
        if self._reader >= 0:
            self._loop.forget(self._reader)
            os.close(self._reader)
            self._reader = -1

    def _give_up(self) -> None:
        self._end_look()
        self._kill()
        self._timer = self._loop.later(self._interval, self._look)

    def _kill(self) -> None:
        if self.pid is not None:
            try:
                os.killpg(self.pid, 9)
            except ProcessLookupError:
                return

    def close(self) -> None:
        """Look no more."""
        self._end_look()
        self._kill()
