"""`runner.pyz guard RUN`: what systemd does for a rank, where there is no systemd.

It starts the rank's main process, and whatever ends that, kills all that is left of the job and does `post`. Orphans
are re-parented to it, so even a SIGKILLed supervisor leaves nothing behind.
"""

from __future__ import annotations

import os

from . import paths, processes, repair
from .errors import NodeError
from .light import signal
from .processes import ProcessTree


def _rank(run: str) -> None:
    """Be the rank's main process; never returns."""
    code = 1
    try:
        processes.rename("lambdactl rank")
        from . import rank

        code = rank.main([run])
    except NodeError as error:
        os.write(2, f"runner: {error.message}\n".encode())
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def main(args: list[str]) -> int:
    """Guard one rank; always 0."""
    if len(args) != 1:
        raise NodeError("bad-request", "usage: runner.pyz guard RUN")
    run = paths.run_id(args[0])
    tree = ProcessTree()
    pid = os.fork()
    if pid == 0:
        _rank(run)
    processes.rename("lambdactl guard")
    if "LAMBDACTL_READY_FD" in os.environ:
        os.close(int(os.environ.pop("LAMBDACTL_READY_FD")))
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    while os.waitpid(-1, 0)[0] != pid:
        pass
    while tree.pids():
        tree.kill(signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    return repair.post([run])
