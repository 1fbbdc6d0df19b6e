"""`lambdactl apply -f SERVICE` on a Kubernetes fleet: plan, confirm, make or change, wait, take back what fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lambdactl.backends.kubernetes import service_front, services
from lambdactl.backends.kubernetes.backend import open_backend
from lambdactl.backends.kubernetes.fitting import service_plan_on, service_url
from lambdactl.backends.kubernetes.proxy_config import service_path
from lambdactl.backends.kubernetes.service_contents import bring, prepare
from lambdactl.backends.kubernetes.service_plan import KubeServicePlan, refuse
from lambdactl.backends.kubernetes.service_probes import described
from lambdactl.backends.kubernetes.service_view import revision_of
from lambdactl.cli import delivery, kube_proxy, service_record
from lambdactl.cli.console import confirm, err, note, print_table, size
from lambdactl.errors import EXIT_FAILED, EXIT_OK, CapacityError, SpecError
from lambdactl.provision.services import line
from lambdactl.run.service import replica_task
from lambdactl.run.service_file import notices

if TYPE_CHECKING:
    from pathlib import Path

    from lambdactl.backends.kubernetes.client import Client
    from lambdactl.backends.kubernetes.fleet import KubeFleet
    from lambdactl.cli.apply import Options
    from lambdactl.run.service import ServiceOverrides
    from lambdactl.spec import ServiceSpec


def run(spec: ServiceSpec, fleet: KubeFleet, overrides: ServiceOverrides, options: Options) -> int:
    """Run a service on a cluster, or change one that runs."""
    if options.ingress is not None:
        raise SpecError(
            "--ingress names a host of an SSH fleet; on Kubernetes the proxy is a pod, where there is room."
        )
    refuse(spec)
    return asyncio.run(_apply(spec, fleet, overrides, options))


async def _apply(spec: ServiceSpec, fleet: KubeFleet, overrides: ServiceOverrides, options: Options) -> int:
    async with open_backend(fleet) as backend:
        name = overrides.run.name or spec.name
        if name is not None and (ref := await backend.find(name)) is not None and not ref.view.ended:
            raise CapacityError(f"a run named {name} is {ref.status.state}; choose another name with -n.")
        contents = await asyncio.to_thread(prepare, await delivery.collect_content(replica_task(spec)))
        plan, client = await service_plan_on(spec, backend, overrides, contents, note=note)
        await delivery.check_volume(client, plan.service.run)
        _show(plan, await kube_proxy.described(client, plan))
        for text in notices(spec):
            note(text)
        verb = "Run" if plan.old is None else "Update"
        if not confirm(f"{verb} the service {plan.service.name} on {fleet.name}?", yes=options.yes):
            return EXIT_OK
        if (sent := await bring(client, plan.service)) is not None:
            note(f"sent {size(sent)}." if sent else "the files volume has every file already.")
        old = None if plan.old is None else dict(plan.old)
        if old is None:
            await services.create(client, plan.service, plan.revision)
        else:
            await services.update(client, plan.service, plan.revision, old)
        name, token = plan.service.name, await service_front.fetch_token(client, plan.service.name)
        token_file = service_record.keep(fleet.id, name, plan.target.name, token)
        if options.detach:
            note(f"{name} is handed to the cluster. Look with: lambdactl run get {name}")
            return EXIT_OK
        return await _wait(client, plan, old, token_file)


def _show(plan: KubeServicePlan, front: list[tuple[str, str]]) -> None:
    service, spec = plan.service, plan.service.spec
    rows: list[tuple[str, object]] = [
        ("Service", service.name),
        ("Fleet", service.run.fleet),
        ("Cluster", f"{plan.target.name}, namespace {plan.target.namespace}"),
        ("Replicas", f"{service.replicas}, on {', '.join(node.name for node in plan.places) or 'no node'}"),
        ("Image", service.run.image),
        ("GPUs", f"{service.run.gpus} a replica" if service.run.gpus else "none"),
        *delivery.rows(service.run.content),
        ("Port", spec.port),
        ("Probes", described(spec, service.prober)),
        *front,
        ("Address", f"{service_url(plan)} in the cluster"),
        ("Update", _update(plan)),
    ]
    print_table(("FIELD", "VALUE"), rows, to=err())
    for node, why in plan.excluded.items():
        note(f"left out: {node} {why}")


def _update(plan: KubeServicePlan) -> str:
    if plan.old is None:
        return "none"
    if revision_of(plan.old) == plan.revision:
        return "in place"
    if plan.service.surge:
        return "replaces one replica after the other, the new one first"
    gap = "; with one replica there is a gap" if plan.service.replicas == 1 else ""
    return f"replaces one replica after the other, the old one first (no room for one more){gap}"


async def _wait(client: Client, plan: KubeServicePlan, old: dict[str, object] | None, token_file: Path | None) -> int:
    service = plan.service
    try:
        status = await services.wait_ready(
            client, service, plan.revision, old, lambda now: note(f"{service.name}: {line(now)}")
        )
    except asyncio.CancelledError:
        note(f"{service.name} goes on without this command. Look with: lambdactl run get {service.name}")
        return EXIT_OK
    if status.data["revision"] != plan.revision:
        note(f"The update of {service.name} was taken back: {status.data['update']['message']}")
        return EXIT_FAILED
    url = service_url(plan)
    print(url, flush=True)
    note(f"{service.name} is ready at {url} in the cluster, and here with: lambdactl attach {service.name}")
    kube_proxy.tell(url.removesuffix(service_path(service.name)), url, token_file, service.spec.model)
    return EXIT_OK
