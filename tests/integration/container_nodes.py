"""Sandbox workers that have Docker and Podman, images made on them, and a real registry with and without a login.

Docker runs inside of the workers: they have SYS_ADMIN and no seccomp filter, which is enough for an engine of its own
in each. Its storage is a tmpfs, because an overlay cannot lie on the worker's own overlay; a small one is a full disk.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

from lambdactl.sandbox import Sandbox

PACKAGES = ("busybox-static", "crun", "docker-registry", "docker.io", "podman")
RUNNER = "/opt/lambdactl/runner.pyz"
FINAL = ("done", "failed", "stopped")
PATIENCE = 120.0
USER, PASSWORD = "zoe9", "pa55-w0rd"
OPEN, LOCKED, SILENT = "worker-0:5000", "worker-0:5001", "worker-0:5002"

ENGINES = f"""set -e
systemctl stop docker docker.socket docker-registry
mount -t tmpfs -o size=1g tmpfs /var/lib/docker
mkdir -p /etc/containers /var/lib/containers
mount -t tmpfs -o size=200m tmpfs /var/lib/containers
printf '[storage]\\ndriver = "vfs"\\nrunroot = "/run/containers"\\ngraphroot = "/var/lib/containers"\\n' \
  > /etc/containers/storage.conf
echo '{{"insecure-registries": ["{OPEN}", "{LOCKED}", "{SILENT}"]}}' > /etc/docker/daemon.json
systemctl start docker
"""

# bb:1 is busybox with a user and a working directory; mpi:1 has this node's Open MPI, ssh client and CPU benchmark.
IMAGES = """set -e
mkdir -p /tmp/bb/bin /tmp/bb/etc /tmp/bb/tmp /tmp/bb/root; chmod 1777 /tmp/bb/tmp
cp /bin/busybox /tmp/bb/bin/
for name in $(/bin/busybox --list | grep -vx busybox); do ln -sf busybox /tmp/bb/bin/$name; done
printf 'root:x:0:0:root:/root:/bin/sh\\nann:x:1234:1234::/tmp:/bin/sh\\n' > /tmp/bb/etc/passwd
tar -C /tmp/bb -c . | docker import -c 'WORKDIR /work' -c 'ENV FROM_IMAGE=yes' - bb:1
tar -C /tmp/bb -c . | podman import -q -c 'WORKDIR /work' -c 'ENV FROM_IMAGE=yes' - bb:1
cd /
tar -c --exclude='*/docker*' --exclude=usr/bin/podman --exclude='usr/bin/containerd*' --exclude=usr/bin/ctr \
  --exclude='*.a' --exclude='usr/bin/x86_64*' --exclude='usr/lib/*/libicu*' --exclude='usr/lib/*/perl*' \
  usr/bin usr/lib/x86_64-linux-gnu usr/lib64 usr/lib/openssh usr/share/openmpi bin lib lib64 sbin opt/lambdactl/bench \
  etc/passwd etc/group etc/ssh/ssh_config etc/ld.so.conf etc/ld.so.conf.d etc/ld.so.cache etc/alternatives etc/openmpi \
  etc/nsswitch.conf | docker import -c 'ENV FROM_IMAGE=yes' - sandbox-mpi:1
"""

REGISTRY = f"""set -e
mkdir -p /srv/registry /etc/registry
python3 -W ignore -c 'import crypt
print("{USER}:" + crypt.crypt("{PASSWORD}", crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16)))' > /etc/registry/htpasswd
for name in open locked; do
  auth=; port=5000
  [ $name = open ] || {{ port=5001; auth='auth: {{htpasswd: {{realm: test, path: /etc/registry/htpasswd}}}}'; }}
  printf 'version: 0.1\\nstorage: {{filesystem: {{rootdirectory: /srv/registry}}}}\\nhttp: {{addr: ":%s"}}\\n%s\\n' \
    $port "$auth" > /etc/registry/$name.yml
  systemd-run --quiet --unit=registry-$name docker-registry serve /etc/registry/$name.yml
done
until curl -fsS http://{OPEN}/v2/ >/dev/null; do sleep 0.2; done
head -c 12000000 /dev/urandom > /tmp/bb/blob
tar -C /tmp/bb -c . | docker import -c 'WORKDIR /work' - {OPEN}/big:1
docker push -q {OPEN}/big:1
docker rmi {OPEN}/big:1
"""


# A registry that stops answering in the middle of a pull.
HANG = """import http.server, time
class Registry(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/v2/":
            time.sleep(3600)
        self.send_response(200)
        self.end_headers()
    do_HEAD = do_GET
http.server.ThreadingHTTPServer(("", 5002), Registry).serve_forever()
"""


class Nodes:
    """Provisioned workers with engines; runs are started by the runner's own protocol."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.names = [worker.name for worker in sandbox.workers]
        self.places = [
            {"name": worker.name, "ip": worker.address, "gpus": 0, "ssh_user": "ubuntu", "ssh_port": 22}
            for worker in sandbox.workers
        ]

    def sh(self, rank: int, command: str, stdin: str | None = None, *, check: bool = True) -> str:
        return self.sandbox.exec(self.names[rank], command, stdin=stdin, check=check).stdout

    def prepare(self) -> None:
        for rank in range(len(self.names)):
            self.sh(rank, ENGINES)
            self.sh(rank, IMAGES)
        self.sh(0, REGISTRY)

    def call(self, rank: int, op: str, **request: Any) -> Any:
        line = json.dumps({"id": 1, "op": op, **request}) + "\n"
        answer = json.loads(self.sh(rank, f"python3 -I -S {RUNNER} serve", line))
        assert answer["ok"], answer
        return answer["result"]

    def start(
        self,
        script: str,
        size: int = 1,
        *,
        image: str = "bb:1",
        container: dict[str, Any] | None = None,
        on: int = 0,
        gpus: int | None = None,
        **fields: Any,
    ) -> str:
        """Start a run on `size` nodes from number `on`; `gpus` of one of them, or all that it has."""
        run = str(uuid.uuid4())
        job = {
            "run_id": run,
            "run_name": "it",
            "nodes": self.places[on : on + size],
            "script": script,
            "env": {},
            **fields,
        }
        job["container"] = {"engine": "docker", "image": image, **(container or {})}
        wanted = "all" if gpus is None else gpus
        job["nodes"] = [{**place, "gpus": gpus or 0} for place in job["nodes"]]
        for rank in range(size):
            mine = self.call(on + rank, "reserve", run_id=run, run_name="it", owner="test", gpus=wanted, ttl=60)
            job["gpus"] = None if gpus is None else mine["gpus"]  # as a controller hands it on
        for rank in range(size):
            self.call(on + rank, "start", job={**job, "rank": rank})
        return run

    def rank(self, run: str, rank: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = self.call(rank, "status", run=run)["ranks"][0]
        return found

    def until(self, run: str, condition: Callable[[dict[str, Any]], bool], rank: int = 0) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while not condition(value := self.rank(run, rank)):
            assert time.monotonic() < deadline, value
            time.sleep(0.1)
        return value

    def wait_log(self, run: str, text: str, rank: int = 0) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in (log := self.log(run, rank)):
            assert time.monotonic() < deadline, (log, self.rank(run, rank))
            time.sleep(0.1)

    def finish(self, run: str, rank: int = 0) -> dict[str, Any]:
        return self.until(
            run, lambda value: value["state"] in FINAL and (value["gang"] or {}).get("state") in FINAL, rank
        )

    def log(self, run: str, rank: int = 0) -> str:
        return self.sh(rank, f"cat /var/lib/lambdactl/runs/{run}/log/*.log", check=False)

    def nothing_left(self, run: str, size: int = 1) -> None:
        """No container, process, unit, slice, control group, lease or private file of the run on any node."""
        look = f"""docker ps --all --quiet --filter label=lambdactl.run={run}
            podman ps --all --quiet --filter label=lambdactl.run={run}
            grep -alz LC_LAMBDACTL_RUN={run} /proc/[0-9]*/environ 2>/dev/null
            systemctl list-units --no-legend --plain 'lambdactl-{run}*' 'lambdactl-{run.replace("-", "")}*'
            find /sys/fs/cgroup -name 'lambdactl-{run}*' -o -name 'lambdactl-{run.replace("-", "")}*'
            ls /var/lib/lambdactl/leases
            ls -d /var/lib/lambdactl/runs/{run}/container 2>/dev/null"""
        for rank in range(size):
            deadline = time.monotonic() + PATIENCE
            while left := self.sh(rank, look, check=False).strip():
                assert time.monotonic() < deadline, left
                time.sleep(0.2)
