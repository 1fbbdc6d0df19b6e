"""Tests against a real Kubernetes cluster; tests/unit/kube/test_live_checks.py runs the same checks on the fake."""
