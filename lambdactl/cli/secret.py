"""`lambdactl secret`: values for `${{ secrets.NAME }}`; they are typed or piped in, never given as an argument."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lambdactl.errors import SpecError

secret_app = typer.Typer(help="Secrets that task files refer to, kept on this machine.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, '_' and '-'.")]


@secret_app.command("set")
def set_secret(name: NameArgument) -> None:
    """Set a secret: asks for its value, or reads it from standard input (a last line break does not count)."""
    from lambdactl.cli.console import note
    from lambdactl.run import secrets

    secrets.check_name(name)
    if sys.stdin.isatty():
        import getpass

        try:
            value = getpass.getpass(f"Value of {name}: ")
        except EOFError:
            raise SpecError(f"no value was given; {name} is as it was.") from None
    else:
        value = sys.stdin.buffer.read(secrets.MAX_SIZE + 2).decode(errors="surrogateescape").removesuffix("\n")
    secrets.put(name, value)
    note(f"{name} is set.")


@secret_app.command("list")
def list_secrets(json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """List the names of the secrets."""
    from lambdactl.cli.console import print_json
    from lambdactl.run import secrets

    found = secrets.names()
    if json:
        print_json([{"name": name} for name in found])
    else:
        for name in found:
            print(name)


@secret_app.command("delete")
def delete_secret(name: NameArgument) -> None:
    """Remove a secret."""
    from lambdactl.cli.console import note
    from lambdactl.run import secrets

    secrets.delete(name)
    note(f"{name} is removed.")
