"""In-cluster configuration: the service account that a pod gets, as a kubeconfig.

Source: https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/ (the two variables, and the folder).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
CONTEXT = "in-cluster"


def in_cluster(environ: Mapping[str, str], folder: Path = FOLDER) -> dict[str, Any] | None:
    """A kubeconfig's content; None where this is no pod, or one without a service account's token."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT") or "443"
    if not host or not (folder / "token").is_file():
        return None
    place = f"[{host}]" if ":" in host else host
    cluster = {"server": f"https://{place}:{port}", "certificate-authority": str(folder / "ca.crt")}
    # The token is renewed by the kubelet: it is read again whenever a login is made.
    user = {"tokenFile": str(folder / "token")}
    try:
        namespace = (folder / "namespace").read_text(encoding="utf-8").strip() or "default"
    except OSError:
        namespace = "default"
    context = {"cluster": CONTEXT, "user": CONTEXT, "namespace": namespace}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": CONTEXT,
        "clusters": [{"name": CONTEXT, "cluster": cluster}],
        "users": [{"name": CONTEXT, "user": user}],
        "contexts": [{"name": CONTEXT, "context": context}],
    }
