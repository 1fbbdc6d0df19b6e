"""The fixtures of tests of the Kubernetes backend."""

from __future__ import annotations

from tests.unit.kube.bed import cluster, target

__all__ = ["cluster", "target"]
