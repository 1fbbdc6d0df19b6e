"""`lambdactl sandbox up|status|down`."""

from __future__ import annotations

from lambdactl import sandbox
from lambdactl.cli.console import note, print_json, print_table, state_text
from lambdactl.errors import EXIT_FAILED, EXIT_OK


def up(name: str, workers: int | None, base: str) -> int:
    """Bring a sandbox up or repair it; prints the path of its fleet file."""
    cluster = sandbox.up(name, workers, base=base, progress=note)
    note(f"The sandbox {name} is up: a jump host and {len(cluster.workers)} workers. Its fleet file:")
    print(cluster.fleet_file)
    note(f"Next: lambdactl apply -f {cluster.fleet_file}")
    return EXIT_OK


def status(name: str, *, as_json: bool) -> int:
    """Show the sandbox's hosts; 0 when all of them are ready."""
    found = sandbox.status(name)
    if as_json:
        nodes = [vars(node) for node in found.nodes]
        file = str(found.fleet_file) if found.fleet_file else None
        print_json({"name": name, "exists": found.exists, "ready": found.ready, "fleet_file": file, "nodes": nodes})
    elif not found.exists:
        note(f"There is no sandbox {name}; `lambdactl sandbox up` makes one.")
    else:
        rows = [(node.name, node.address, state_text(node.state), node.reason) for node in found.nodes]
        print_table(("HOST", "ADDRESS", "STATE", "REASON"), rows)
    return EXIT_OK if found.ready else EXIT_FAILED


def down(name: str) -> int:
    """Remove the sandbox."""
    sandbox.down(name, progress=note)
    return EXIT_OK
