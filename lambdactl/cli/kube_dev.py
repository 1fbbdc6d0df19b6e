"""`lambdactl apply -f DEV` and `attach` of a dev environment on a Kubernetes fleet."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lambdactl.backends.kubernetes import dev
from lambdactl.backends.kubernetes.attempts import rest
from lambdactl.backends.kubernetes.backend import KubeRef, KubernetesBackend, open_backend
from lambdactl.backends.kubernetes.control import clean_up
from lambdactl.backends.kubernetes.errors import APIError
from lambdactl.backends.kubernetes.fitting import plan_on, submit_run
from lambdactl.backends.kubernetes.plan import refuse_unsupported
from lambdactl.cli import delivery, dev_alias, kube_runs, kube_task, waiting
from lambdactl.cli.console import confirm, duration, note, printable
from lambdactl.errors import EXIT_FAILED, EXIT_OK, CapacityError, Interrupted, LambdactlError, SpecError
from lambdactl.run import aliases
from lambdactl.run.dev import IDES, as_task, digest, job_key, link
from lambdactl.run.plan import random_name
from lambdactl.run.retry import Attempts
from lambdactl.spec import line_in
from lambdactl.state import state_dir

if TYPE_CHECKING:
    from lambdactl.backends.kubernetes.client import Client
    from lambdactl.backends.kubernetes.fleet import KubeFleet
    from lambdactl.backends.kubernetes.plan import KubePlan
    from lambdactl.backends.kubernetes.session import RunSession
    from lambdactl.backends.kubernetes.start import Bring
    from lambdactl.cli.apply import Options
    from lambdactl.run.plan import Overrides
    from lambdactl.run.ports import Port
    from lambdactl.run.status import RunStatus
    from lambdactl.spec import DevEnvironmentSpec


def run(spec: DevEnvironmentSpec, fleet: KubeFleet, overrides: Overrides, options: Options) -> int:
    """Start a dev environment on a cluster, or go back to the one that runs, and stay at it."""
    refuse_unsupported(as_task(spec, up=dev.UP))
    if spec.schedule is not None:
        raise SpecError(
            "'schedule' starts a run by the clock, and a dev environment waits for you; remove it.",
            filename=spec.source.filename,
            line=line_in(spec, "schedule"),
        )
    return asyncio.run(_apply(spec, fleet, overrides, options))


async def _apply(spec: DevEnvironmentSpec, fleet: KubeFleet, overrides: Overrides, options: Options) -> int:
    task = as_task(spec, up=dev.UP)
    content = await delivery.collect_content(task)
    async with open_backend(fleet) as backend:
        name = overrides.name or task.name or random_name()
        if (ref := await backend.find(name)) is not None and not ref.view.ended:
            return await _again(spec, backend, ref, options)
        patience = waiting.patience(None, options.wait, options.max_wait)
        attempts = Attempts(task.retry, time.time())
        named = replace(overrides, name=name)
        make = partial(plan_on, task, backend, named, content, note=note, keep=options.keep)
        plan, client = await make(kube_task.allowance(patience, attempts))
        kube_task.show(plan, _rows(spec))
        kube_task.local_ports(plan, options)  # one that is taken is told before anything is started
        if not confirm(f"Run {name} on {fleet.name}?", yes=options.yes):
            return EXIT_OK
        included = dev_alias.include(yes=options.yes)
        while True:
            told = attempts.as_job() if task.retry is not None else None
            plan = replace(plan, run=replace(plan.run, dev=job_key(spec), attempt=told))
            try:
                code, status = await _attempt(backend, client, fleet, plan, options, included, wait=patience.waits)
            except CapacityError as error:  # somebody was quicker
                if (limit := kube_task.allowance(patience, attempts)) == 0:
                    raise
                note(str(error))
            else:
                if status is None or not await rest(client, attempts, status, note):
                    break
                limit = kube_task.allowance(patience, attempts)
                included = included and dev_alias.include(yes=True)  # it went with the alias of the last one
            plan, client = await make(limit)
        if task.retry is not None and status is not None and (ref := await backend.find(status.run_id)) is not None:
            await clean_up(ref.client, ref.view)
        return code


async def _attempt(
    backend: KubernetesBackend, client: Client, fleet: KubeFleet, plan: KubePlan, options: Options, included: bool,
    *, wait: bool,
) -> tuple[int, RunStatus | None]:  # fmt: skip
    """Start it once and be there; the exit code, and the status of its end where that was seen."""
    ref = await submit_run(client, plan)
    kube_task.remember(plan, fleet, state="submitted")
    retry = plan.run.task.retry is not None
    bring = delivery.bring_to_ranks(plan.run)
    place = Place(backend, ref, included, options.log_dir, bring, wait, tidy=not retry)
    try:
        if options.detach:
            return await place.wait_until_up()
        code, status = await place.follow(mine=True, ports=kube_task.local_ports(plan, options))
    except LambdactlError as error:
        if not retry or type(error) is not LambdactlError:
            raise
        note(str(error))
        code, status = EXIT_FAILED, kube_task.never_started(plan, str(error))
    if status is not None or not retry:
        kube_task.remember(plan, fleet, state="ended", exit_code=code)
    return code, status


def _rows(spec: DevEnvironmentSpec) -> list[tuple[str, object]]:
    ide = IDES[spec.ide] if spec.ide else "none: SSH only"
    if spec.version:
        ide += f" {spec.version} (brings its own server when it connects)"
    limit = spec.inactivity_duration
    return [("Type", "dev environment"), ("IDE", ide), ("Inactivity", "off" if limit is None else duration(limit))]


async def _again(spec: DevEnvironmentSpec, backend: KubernetesBackend, ref: KubeRef, options: Options) -> int:
    """The environment runs already: set its inactivity limit if that is what has changed, and go to it.

    Raises:
        CapacityError: the file says something else that cannot be changed while it runs.
    """
    name, facts = ref.status.name, ref.view.facts.get("dev") or {}
    if facts.get("digest") != digest(spec):
        what = "from another file, and only 'inactivity_duration' can be changed meanwhile" if facts else "already"
        raise CapacityError(
            f"{name} runs {what}; stop it with `lambdactl stop {name}`, or choose another name with -n."
        )
    note(f"{name} runs already on {ref.status.hosts.get(0, '-')}.")
    wanted, pod = spec.inactivity_duration, ref.view.pod_of(0)
    if facts.get("inactivity") != wanted and pod is not None:
        shown = "off" if wanted is None else duration(wanted)
        if confirm(f"Set its inactivity_duration to {shown}?", yes=options.yes):
            await dev.set_inactivity(ref.client, ref.job_name, pod["metadata"]["name"], ref.view.facts, wanted)
            note(f"inactivity_duration is {shown} now.")
    included = dev_alias.include(yes=options.yes)
    place = Place(backend, ref, included, options.log_dir)
    return (await (place.wait_until_up() if options.detach else place.follow()))[0]


async def attach(
    backend: KubernetesBackend,
    ref: KubeRef,
    *,
    since: float | None,
    log_dir: Path | None,
    yes: bool,
    ports: Sequence[Port] = (),
) -> int:
    """Its link, its alias and presence again, on this machine."""
    return (await Place(backend, ref, dev_alias.include(yes=yes), log_dir).follow(since=since, ports=ports))[0]


async def known(ref: KubeRef) -> RunStatus:
    """The status with what only the pod knows: user, directory, sessions."""
    pod, status = ref.view.pod_of(0), ref.status
    if status.dev is None or status.dev.get("up_at") is None or status.final or pod is None:
        return status
    with contextlib.suppress(APIError):
        told = await dev.ask(ref.client, pod["metadata"]["name"])
        first = {**status.ranks[0], "dev": {**status.dev, **told}}
        return replace(status, ranks=(first, *status.ranks[1:]))
    return status


class Place:
    """A dev environment that was submitted, and what is done at it."""

    def __init__(
        self,
        backend: KubernetesBackend,
        ref: KubeRef,
        included: bool,
        log_dir: Path | None,
        bring: Bring | None = None,
        wait: bool = False,
        *,
        tidy: bool = True,
    ) -> None:
        self._backend, self._ref, self._tidy = backend, ref, tidy
        self._included, self._log_dir = included, log_dir
        self._bring, self._wait = bring, wait
        self._name = ref.status.name

    async def follow(
        self, *, mine: bool = False, since: float | None = None, ports: Sequence[Port] = ()
    ) -> tuple[int, RunStatus | None]:
        """Show the log, tell when it is up, and be present until it ends or the user detaches (no status then)."""
        try:
            return await kube_runs.follow(
                self._backend, self._ref, ranks=[0], since=since, log_dir=self._log_dir, stop_when_interrupted=mine,
                wait=self._wait, ports=ports, bring=self._bring, beside=self._be_here, tidy=self._tidy,
            )  # fmt: skip
        finally:
            await self._forget_if_ended()

    async def wait_until_up(self) -> tuple[int, RunStatus | None]:
        """Show the log of `init` until it is up (0, no status), else the exit code and the status of its end."""
        from lambdactl.cli.following import report_end
        from lambdactl.run.screen import LogOutput

        output = LogOutput([0], directory=self._log_dir)
        try:
            async with self._backend.session(self._ref) as session:
                follower = self._backend.follower(
                    session, output, show=[0], notify=note, wait=self._wait, bring=self._bring, tidy=self._tidy
                )
                following = asyncio.ensure_future(follower.run())
                waiting = asyncio.ensure_future(session.until(dev.is_up))
                try:
                    await asyncio.wait((following, waiting), return_when=asyncio.FIRST_COMPLETED)
                    if following.done():
                        following.result()
                        await self._forget_if_ended()
                        status = await follower.status()
                        return report_end(status, self._name), status
                    await asyncio.sleep(0.3)  # the last words of `init`
                    await self._announce(session)
                finally:
                    for task in (following, waiting):
                        task.cancel()
                    await asyncio.gather(following, waiting, return_exceptions=True)
        except asyncio.CancelledError:
            raise Interrupted(
                f"interrupted; {self._name} goes on. `lambdactl attach {self._name}` comes back to it."
            ) from None
        finally:
            output.close()
        note(f"Come back with: lambdactl attach {self._name}; end it with: lambdactl stop {self._name}")
        return EXIT_OK, None

    async def _be_here(self, session: RunSession) -> None:
        """What goes on beside the log."""
        await session.until(dev.is_up)
        try:
            await self._announce(session)
        except LambdactlError as error:
            note(str(error))
        await dev.be_present(session)

    async def _announce(self, session: RunSession) -> None:
        """Make the alias and print how to get in."""
        pod = session.view.pod_of(0)
        if pod is None:
            return
        known = await dev.ask(session.client, pod["metadata"]["name"])
        node, user = str(pod["spec"].get("nodeName")), str(known["user"] or "root")
        folder = state_dir() / "kubernetes"
        aliases.put(await dev.alias(session.client, session.run_id, self._backend.fleet.id, node, user, folder))
        note(f"{self._name} is up on {node}.")
        ide = (session.view.facts.get("dev") or {}).get("ide")
        if (url := link(ide, self._name, str(known["directory"] or "/"))) is not None:
            print(printable(f"{IDES.get(str(ide), ide)}: {url}"), flush=True)
            if not self._included:
                note("The IDE finds it once your ssh_config includes the alias: `lambdactl attach -y` adds the line.")
        command = f"ssh {self._name}" if self._included else f"ssh -F {aliases.config_file()} {self._name}"
        print(f"SSH: {command}", flush=True)

    async def _forget_if_ended(self) -> None:
        ref = await self._backend.find(self._ref.status.run_id)
        if ref is None or ref.status.final:
            dev_alias.forget([self._ref.status.run_id])
