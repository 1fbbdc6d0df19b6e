"""dstack's cron expressions as moments and as Kubernetes has them, and what is said of a schedule. Pure."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lambdactl.backends.kubernetes.schedule_objects import in_kubernetes
from lambdactl.backends.kubernetes.schedule_view import Schedule, minute_of
from lambdactl.node.cron import Cron, last_of, next_of
from lambdactl.spec.values import read_cron

NOW = 1_795_660_200.0  # 2026-11-26 02:30:00 UTC, a Thursday
AT = NOW - 600


def items(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    pairs = st.tuples(number, number).map(sorted).map(lambda pair: f"{pair[0]}-{pair[1]}")
    steps = st.tuples(st.one_of(st.just("*"), number.map(str)), st.integers(1, high - low)).map("{0[0]}/{0[1]}".format)
    return st.lists(st.one_of(st.just("*"), number.map(str), pairs, steps), min_size=1, max_size=3).map(",".join)


EXPRESSIONS = st.tuples(
    items(0, 59), items(0, 23), st.one_of(st.just("last"), items(1, 31)), items(1, 12), items(0, 6)
).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(EXPRESSIONS, st.integers(0, 4 * 366 * 1440))
def test_the_moments_of_an_expression_are_where_it_matches(text: str, minutes: int) -> None:
    moment = NOW + minutes * 60
    cron = Cron(read_cron(text))
    due = cron.after(moment)
    if due is not None:
        assert due > moment
        assert cron.matches(due)
        assert cron.before(due) == due
        before = cron.before(due - 1)
        assert before is None or before <= moment


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("* * * * *", "* * * * *"),
        ("30 2 * * 0", "30 2 * * 1"),  # Monday
        ("30 2 * * sun", "30 2 * * 0"),
        ("*/20 9-17/4 1 jan,jul *", "0,20,40 9,13,17 1 1,7 *"),
        ("0 3 1 * 0-4", "0 3 1 * *"),  # the first, on workdays: the pod looks at the weekday itself
        ("0 3 1-28 * 4", "0 3 * * 5"),  # the rarer days remain
        ("0 0 last * *", "0 0 28,29,30,31 * *"),
        ("0 0 last,15 * *", "0 0 15,28,29,30,31 * *"),
    ],
)
def test_expressions_as_kubernetes_has_them(text: str, expected: str) -> None:
    assert in_kubernetes(Cron(read_cron(text))) == expected


def test_the_next_and_the_last_of_several() -> None:
    crons = [Cron("30 2 * * *"), Cron("0 12 * * 6")]
    assert next_of(crons, NOW) == NOW + 86400
    assert last_of(crons, NOW) == NOW
    assert last_of(crons, NOW - 1) == NOW - 86400
    assert next_of([Cron("0 0 30 2 *")], NOW) is None


def test_the_minute_in_a_jobs_name() -> None:
    assert minute_of("nightly-cron-29927677") == 29927677 * 60
    assert minute_of("nightly-cron-1-29927677") == 29927677 * 60
    assert minute_of("nightly-by-hand") is None


def job(at: float, **status: Any) -> dict[str, Any]:
    name = f"nightly-cron-{int(at // 60)}"
    meta = {"name": name, "uid": name, "creationTimestamp": stamp(at)}
    return {"metadata": meta, "status": status}


def stamp(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def ended(kind: str, at: float) -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": "True", "lastTransitionTime": stamp(at)}]}


def pod(owner: dict[str, Any], state: dict[str, Any], **more: Any) -> dict[str, Any]:
    spec = {"containers": [{"name": "main", "image": "registry/cron:1"}], "nodeName": "node-1"}
    return {
        "metadata": {"name": "p", "ownerReferences": [{"uid": owner["metadata"]["uid"]}]}, "spec": spec,
        "status": {"containerStatuses": [{"name": "main", "image": "registry/cron:1", "state": state}], **more},
    }  # fmt: skip


def schedule(*, last: dict[str, Any] | None = None, cron: str = "20 2 * * *", **more: Any) -> Schedule:
    facts = {"id": "1", "owner": "ada@laptop", "nodes": 2, "cron": [cron], "submitted_at": NOW - 1e6}
    notes = {"lambdactl.dev/schedule-facts": json.dumps(facts)}
    if last is not None:
        notes["lambdactl.dev/schedule-last"] = json.dumps(last)
    meta = {"name": "nightly-cron", "uid": "1", "annotations": notes, "creationTimestamp": stamp(NOW - 1e6)}
    return Schedule("nightly", [{"metadata": meta, "spec": {"suspend": False}}], **more)


NEXT = "next at 2026-11-27 02:20 UTC"
FAILED, DONE = job(AT, **ended("Failed", AT + 20)), job(AT, **ended("Complete", AT + 20))
NO_IMAGE = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "registry/cron:1": not found'}}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (schedule(last={"at": AT, "started": True}), f"{NEXT}; was started at 2026-11-26 02:20 UTC"),
        (
            schedule(last={"at": AT, "started": False, "message": "too few nodes."}),
            f"{NEXT}; was missed at 2026-11-26 02:20 UTC: too few nodes",
        ),
        (schedule(jobs=[job(AT)]), f"{NEXT}; is being started since 2026-11-26 02:20 UTC"),
        (
            schedule(jobs=[job(AT)], pods=[pod(job(AT), {"running": {}})]),
            f"{NEXT}; was started at 2026-11-26 02:20 UTC",
        ),
        (
            schedule(jobs=[job(AT)], pods=[pod(job(AT), NO_IMAGE)]),
            f"{NEXT}; was missed at 2026-11-26 02:20 UTC: the pod that starts it does not start: its image cannot be "
            "pulled (ImagePullBackOff: not found); name one that the nodes can pull as `controller_image`",
        ),
        (
            schedule(jobs=[FAILED], pods=[pod(FAILED, {"terminated": {
                "exitCode": 128, "message": 'exec: "lambdactl": executable file not found in $PATH'}})]),
            f"{NEXT}; was missed at 2026-11-26 02:20 UTC: the image registry/cron:1 has no lambdactl in it; build it "
            "from images/Dockerfile, or name one that has as `controller_image` in the configuration",
        ),
        (
            schedule(jobs=[FAILED], pods=[pod(FAILED, {"terminated": {"exitCode": 1, "message": "lambdactl: no.\n"}})]),
            f"{NEXT}; was missed at 2026-11-26 02:20 UTC: the pod that starts it ended with code 1: lambdactl: no.",
        ),
        (
            schedule(jobs=[FAILED], pods=[pod(FAILED, {"terminated": {
                "exitCode": 7, "message": '{"started": true, "message": null}'}})]),
            f"{NEXT}; was started at 2026-11-26 02:20 UTC",
        ),
        (
            schedule(jobs=[job(AT - 86400)], last={"at": AT - 86400, "started": True}),
            f"{NEXT}; was missed at 2026-11-26 02:20 UTC: the run before had not ended",
        ),
        (
            schedule(jobs=[job(AT - 86400, **ended("Complete", AT - 80000))]),
            f"{NEXT}; was missed at 2026-11-26 02:20 UTC: the cluster did not serve that time (its CronJob controller "
            "was away, or the CronJob suspended)",
        ),
        (
            schedule(jobs=[job(AT)], refusal="the service account is gone."),
            f"{NEXT}; was missed at 2026-11-26 02:20 UTC: the pod that starts it cannot be made: the service account "
            "is gone",
        ),
        (schedule(cron="0 0 30 2 *"), "is never due"),
        (schedule(cron="whenever I like"), "is never due"),
    ],
)  # fmt: skip
def test_what_is_said_of_the_next_and_the_last_time(found: Schedule, said: str) -> None:
    status = found.status(NOW)
    assert status.message == said
    assert (status.state, status.nodes_num, status.owner, status.run_id) == ("scheduled", 2, "ada@laptop", "1")


def test_a_day_on_which_only_kubernetes_was_due_does_not_count() -> None:
    # The 22nd was a Sunday: its pod has looked, and left again.
    looked = job(AT - 4 * 86400, **ended("Complete", AT - 4 * 86400 + 5))
    found = schedule(cron="20 2 * * 0-4", jobs=[looked], last={"at": AT, "started": True})
    assert found.newest is None
    assert str(found.status(NOW).message).endswith("was started at 2026-11-26 02:20 UTC")


def test_one_that_is_suspended_or_half_made() -> None:
    found = schedule(jobs=[DONE], last={"at": AT, "started": True})
    found.cron_jobs[0]["spec"]["suspend"] = True
    assert str(found.status(NOW).message).startswith("is suspended in the cluster (`kubectl patch cronjob`); was st")
    del found.cron_jobs[0]["metadata"]["annotations"]["lambdactl.dev/schedule-facts"]
    assert found.status(NOW).message == "was not handed over whole; `lambdactl stop nightly` removes it"
