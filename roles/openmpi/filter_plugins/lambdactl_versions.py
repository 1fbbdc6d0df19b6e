# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible filter: the value that occurs most often."""

from __future__ import annotations

from collections import Counter


def most_common(values):
    """The most common value, the first of them where several are; empty for an empty list."""
    counted = Counter(values).most_common(1)
    return counted[0][0] if counted else ""


class FilterModule:
    """most_common"""

    def filters(self):
        return {"lambdactl_most_common": most_common}
