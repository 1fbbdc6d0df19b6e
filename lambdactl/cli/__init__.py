"""The `lambdactl` command: thin doors onto the library. Each module parses, prints and decides exit codes; no logic."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point: run the command line and turn every expected error into one sentence and its exit code."""
    from lambdactl.errors import EXIT_INTERRUPTED, LambdactlError

    try:
        from lambdactl.cli.app import app

        app(prog_name="lambdactl")
    except LambdactlError as error:
        print(f"lambdactl: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("lambdactl: interrupted.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader (`| head`) has gone: no message, and no second one from the interpreter's shutdown.
        sys.stdout = None
        sys.exit(141)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"lambdactl: {where}{error.strerror or error}.", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if os.environ.get("LAMBDACTL_TRACEBACK"):
            raise
        print(f"lambdactl: {_bug(error)}", file=sys.stderr)
        sys.exit(1)


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
