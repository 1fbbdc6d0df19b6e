"""The `lambdactl` command: thin doors onto the library. Each module parses, prints and decides exit codes; no logic."""

from __future__ import annotations

import os
import sys

EXIT_READER_GONE = 141


class ReaderGone(Exception):
    """The reader of our output (`| head`) has gone; raised where Typer or rich would make another exit code of that."""


def main() -> None:
    """Entry point: run the command line and turn every expected error into one sentence and its exit code."""
    from lambdactl.errors import EXIT_INTERRUPTED, LambdactlError

    _open_closed_streams()
    try:
        from lambdactl.cli.app import app

        try:
            app(prog_name="lambdactl")
        finally:
            sys.stdout.flush()  # here, not at the interpreter's shutdown, whose complaint is a message of its own
    except LambdactlError as error:
        print(f"lambdactl: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("lambdactl: interrupted.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except (BrokenPipeError, ReaderGone):
        # No message, and no second one from the interpreter's shutdown.
        sys.stdout = None
        sys.exit(EXIT_READER_GONE)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"lambdactl: {where}{error.strerror or error}.", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if os.environ.get("LAMBDACTL_TRACEBACK"):
            raise
        print(f"lambdactl: {_bug(error)}", file=sys.stderr)
        sys.exit(1)


def _open_closed_streams() -> None:
    """A standard stream that the caller has closed (`>&-`) is /dev/null; no file or socket of ours takes its place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 (it stays open)


def _bug(error: Exception) -> str:
    """A sentence for what nobody foresaw; the traceback goes into a private file, for the report."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="lambdactl-bug-", suffix=".txt", delete=False) as file:
        file.write("".join(traceback.format_exception(error)))
    summary = str(error).partition("\n")[0][:200]
    return (
        f"this is a bug in lambdactl ({type(error).__name__}: {summary}); please report it with the file {file.name}."
    )
