"""`lambdactl nccl`: read the output of nccl-tests, judge it, explain a failed run. Exit codes: docs/nccl.md."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

if TYPE_CHECKING:
    from lambdactl.nccl.model import Result

EXIT_WARN = 10
EXIT_NO_VERDICT = 11

nccl_app = typer.Typer(help="Read, judge and explain the output of nccl-tests.", no_args_is_help=True)

FileArgument = Annotated[str, typer.Argument(metavar="FILE|-", help="Output or JSON report of nccl-tests; '-': stdin.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


class Algorithm(StrEnum):
    """What the run's NCCL_ALGO was."""

    DEFAULT = "default"
    RING = "ring"


@nccl_app.command()
def parse(
    file: FileArgument,
    json: JsonOption = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print one line a row, comma-separated.")] = False,
) -> None:
    """Print what a test measured, whatever wrote its output: mpirun, srun, dstack, kubectl, a JSON report."""
    from lambdactl.cli.console import note, print_json, printable
    from lambdactl.errors import EXIT_FAILED, SpecError
    from lambdactl.nccl import render

    if json and csv:
        raise SpecError("--json and --csv exclude each other; give one of them.")
    result = _read(file)
    if json:
        print_json(render.result_json(result))
    elif csv:
        print(render.result_csv(result), end="")
    else:
        for line in render.table_text(result):
            print(printable(line))
    for text in (*result.notes, *result.errors):
        note(f"note: {text}")
    if not any(table.rows for table in result.tables):
        sys.exit(EXIT_FAILED)


@nccl_app.command()
def verdict(
    file: FileArgument,
    gpus_per_node: Annotated[int, typer.Option("--gpus-per-node", metavar="N", help="GPUs of a node that took part.")],
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", help="How many nodes were to take part.")],
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="NAME", help="The GPU, such as B200 (default: as the output says).")
    ] = None,
    nic_gbps: Annotated[
        float | None, typer.Option("--nic-gbps", metavar="GBPS", help="Rate of one NIC in Gb/s, such as 400.")
    ] = None,
    nics: Annotated[int | None, typer.Option("--nics", metavar="N", help="NICs of a node that NCCL uses.")] = None,
    algorithm: Annotated[
        Algorithm, typer.Option("--algo", help="ring when the test ran with NCCL_ALGO=Ring.")
    ] = Algorithm.DEFAULT,
    ethernet: Annotated[
        bool, typer.Option("--ethernet", help="The NICs do no RDMA: TCP is what was bought, and no fault.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Judge a cluster's all-reduce bandwidth by what its hardware should give: PASS, WARN, FAIL, or no verdict."""
    from lambdactl.cli.console import print_json, printable
    from lambdactl.errors import EXIT_FAILED, EXIT_OK
    from lambdactl.nccl.hardware import Hardware
    from lambdactl.nccl.render import verdict_text
    from lambdactl.nccl.verdict import Status
    from lambdactl.nccl.verdict import verdict as judge

    Hardware(gpu or "", gpus_per_node, nodes, nics, nic_gbps)  # a wrong number is told before a long read
    result = _read(file)
    name = gpu or (result.gpus[0] if result.gpus else "unknown")
    found = judge(
        result, Hardware(name, gpus_per_node, nodes, nics, nic_gbps, algorithm.value, infiniband=not ethernet)
    )
    if json:
        print_json(found.as_json())
    else:
        for line in verdict_text(found):
            print(printable(line))
    codes = {Status.PASS: EXIT_OK, Status.FAIL: EXIT_FAILED, Status.WARN: EXIT_WARN, Status.NONE: EXIT_NO_VERDICT}
    sys.exit(codes[found.status])


@nccl_app.command()
def explain(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="A run's log; '-': stdin.")], json: JsonOption = False
) -> None:
    """Name the known causes and remedies for the failure messages of NCCL, CUDA, Open MPI and SSH in a log."""
    from dataclasses import asdict

    from lambdactl.cli.console import note, print_json
    from lambdactl.errors import EXIT_FAILED
    from lambdactl.nccl.catalogue import Explainer
    from lambdactl.nccl.render import explanation_text

    explainer = Explainer()
    with _open(file) as stream:
        while chunk := stream.read(1 << 20):
            explainer.feed(chunk)
    found = explainer.close()
    if json:
        print_json({"explanations": [asdict(item) for item in found]})
    else:
        print("\n".join(line for item in found for line in explanation_text(item)), end="\n" if found else "")
    if not found:
        note("No known failure message found.")
        sys.exit(EXIT_FAILED)


@contextmanager
def _open(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    from pathlib import Path

    from lambdactl.errors import SpecError

    try:
        stream = Path(file).open("rb")  # noqa: SIM115 (closed below; only the opening is to be caught)
    except OSError as error:
        raise SpecError(f"{error.strerror}; give a readable file, or '-' for standard input.", filename=file) from None
    with stream:
        yield stream


def _read(file: str) -> Result:
    from lambdactl.nccl.errors import NcclOutputError
    from lambdactl.nccl.parser import parse_stream

    with _open(file) as stream:
        try:
            return parse_stream(stream)
        except NcclOutputError as error:
            raise NcclOutputError(f"{'standard input' if file == '-' else file}: {error}") from None
