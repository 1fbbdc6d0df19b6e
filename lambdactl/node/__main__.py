"""Verbs of the runner; each is imported only when it is asked for, because start-up time is paid on every session."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

USAGE = (
    "usage: runner.pyz serve | logs RUN [--offset N] [--since EPOCH] [--follow] | status [RUN] | node-shell"
    " | enter RUN [-- COMMAND]\n"
)


def _serve(args: list[str]) -> int:
    from .serve import main

    return main(args)


def _logs(args: list[str]) -> int:
    from .logs import main

    return main(args)


def _status(args: list[str]) -> int:
    from .serve import print_status

    return print_status(args)


def _rank(args: list[str]) -> int:
    from .rank import main

    return main(args)


def _agent(args: list[str]) -> int:
    from .agent import main

    return main(args)


def _post(args: list[str]) -> int:
    from .repair import post

    return post(args)


def _guard(args: list[str]) -> int:
    from .guard import main

    return main(args)


def _node_shell(args: list[str]) -> int:
    from .shell import main

    return main(args)


def _session(args: list[str]) -> int:
    from .landing import session

    return session(args)


def _land(args: list[str]) -> int:
    from .landing import land

    return land(args)


def _container(name: str) -> Callable[[list[str]], int]:
    def verb(args: list[str]) -> int:
        if name == "enter":
            from .container_enter import main

            return main(args)
        from . import container_run

        return {"container-prepare": container_run.prepare, "container-run": container_run.run}[name](args)

    return verb


def _service(args: list[str]) -> int:
    from .service import main

    return main(args)


def _prepare(args: list[str]) -> int:
    from .prepare import main

    return main(args)


def _receive(args: list[str]) -> int:
    from .transfer import receive

    return receive(args)


def _push(args: list[str]) -> int:
    from .transfer import push

    return push(args)


def _enter_volumes(args: list[str]) -> int:
    from .shell import enter_volumes

    return enter_volumes(args)


def _scheduled(args: list[str]) -> int:
    from .schedule import main

    return main(args)


def _compile(args: list[str]) -> int:
    from .compiled import main

    return main(args)


VERBS = {
    "serve": _serve,
    "logs": _logs,
    "status": _status,
    "rank": _rank,
    "agent": _agent,
    "post": _post,
    "guard": _guard,
    "node-shell": _node_shell,
    "session": _session,
    "land": _land,
    **{name: _container(name) for name in ("container-prepare", "container-run", "enter")},
    "service": _service,
    "prepare": _prepare,
    "receive": _receive,
    "push": _push,
    "enter-volumes": _enter_volumes,
    "scheduled": _scheduled,
    "compile": _compile,
}


def main() -> int:
    """Run the verb that the command line names; the exit code is the verb's."""
    verb = VERBS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if verb is None:
        sys.stderr.write(USAGE)
        return 2
    import gc

    from .errors import NodeError

    gc.set_threshold(20_000, 20, 20)  # a session leaves few cycles, and its forks share what no collection touches
    try:
        return verb(sys.argv[2:])
    except NodeError as error:
        sys.stderr.write(f"runner: {error.message}\n")
        return error.exit_code
    except (BrokenPipeError, KeyboardInterrupt):
        return 130


if __name__ == "__main__":
    sys.exit(main())
