"""Prefixes that launchers and log collectors put before a line, and where a message of NCCL starts inside one."""

from __future__ import annotations

import re

_RANK = r"(?P<rank>\d{1,7})"
# srun -l and lambdactl's own rank prefixes (padded); Hydra -l prints "[1] "; mpirun --tag-output: 4 prints
# "[1,0]<stdout>:", 5 "[job@1,0]<stdout>: "; --timestamp-output puts a date before it. Then time stamps (kubectl
# --timestamps, docker logs -t), ISO and bracketed; kubectl --prefix; syslog.
_PREFIXES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\s{{0,8}}{_RANK}: ?(?![\d:])",
        rf"\[{_RANK}\] ",
        rf"[^<>\n]{{0,120}}?\[[^\]\n]{{0,80}}?,\s?{_RANK}\]<std(?:out|err|diag)>: ?",
        r"[^<>\n]{0,80}<std(?:out|err|diag)>: ?",
        r"\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?\]? ?",
        r"\[\d\d:\d\d:\d\d(?:\.\d{1,9})?\] ?",
        r"\[pod/[^\]\s]{1,300}\] ?",
        r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \S{1,255} [^\s:\[]{1,64}(?:\[\d{1,9}\])?: ",
    )
)
_MAX_LAYERS = 4
NCCL_MESSAGE = re.compile(
    r"(?:\[\d{4}-\d\d-\d\d[^\]\n]{0,40}\] )?(?P<host>[A-Za-z0-9][A-Za-z0-9._-]{0,254}):\d{1,10}:\d{1,10} "
    r"(?:\[\d{1,4}\] )?(?:[^\n]{0,200}? )?NCCL (?:INFO|WARN|TRACE|VERSION|ABORT)"
)
_GLUED_NUMBER = re.compile(r"[\d.]+(?:e[+-]?\d+)?(?=[A-Za-z])")


def strip_prefixes(line: str) -> tuple[int | None, str]:
    """The rank that a line's prefixes name, if any, and the line without them."""
    if ":" not in line and "[" not in line and "<" not in line:
        return None, line  # as almost every row: each prefix has one of them
    rank = None
    for _ in range(_MAX_LAYERS):
        for pattern in _PREFIXES:
            match = pattern.match(line)
            if match and match.end() > 0:
                found = match.groupdict().get("rank")
                rank = int(found) if found is not None else rank
                line = line[match.end() :]
                break
        else:
            break
    return rank, line


def before_message(line: str) -> str | None:
    """What stands before a message of NCCL that another rank wrote into this line, or None when there is no message.

    A row may be cut within a number, which then touches the host's name: "45.3node-1:12:13 [0] NCCL INFO ...".
    """
    match = NCCL_MESSAGE.search(line)
    if match is None:
        return None
    head = line[: match.start()]
    glued = _GLUED_NUMBER.match(match["host"]) if head.strip() else None
    return head + (glued.group() if glued else "")
