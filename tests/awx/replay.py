"""What AWX 24.6.1 does with this project, step by step and without an AWX (awx/main/tasks/jobs.py).

`Replay.sync` is an inventory update: ansible-inventory in a clean checkout, with the sync's environment. `freeze` is
what AWX keeps of it. `Replay.job` is a job: a private data directory with that frozen inventory as an executable file,
the checkout, the environment, the arguments, the survey's answers and the machine key, run by ansible-runner.

Nothing of the user's environment gets in, lambdactl and asyncssh are not installed (`stock_environment`), and each job
has a home folder of its own.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

from tests.awx import credentials

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TASK_ENV = {  # ANSIBLE_* of awx/settings/defaults.py
    "ANSIBLE_HOST_KEY_CHECKING": "False",
    "ANSIBLE_PARAMIKO_RECORD_HOST_KEYS": "False",
    "ANSIBLE_FORCE_COLOR": "True",
    "ANSIBLE_INVENTORY_UNPARSED_FAILED": "True",
}
SYNC_ENV = {  # STANDARD_INVENTORY_UPDATE_ENV of awx/main/constants.py
    "ANSIBLE_INVENTORY_UNPARSED_FAILED": "True",
    "ANSIBLE_INVENTORY_EXPORT": "True",
    "ANSIBLE_VERBOSE_TO_STDERR": "True",
    "ANSIBLE_HOST_PATTERN_MISMATCH": "error",
}
PATHS = {  # path_vars of RunJob.build_env, with what this project's ansible.cfg says
    "ANSIBLE_COLLECTIONS_PATH": "requirements_collections:~/.ansible/collections:/usr/share/ansible/collections",
    "ANSIBLE_ROLES_PATH": "requirements_roles:roles:~/.ansible/roles:/usr/share/ansible/roles:/etc/ansible/roles",
}
_ENTRY = "#!{python}\nimport sys\nfrom ansible.cli.{module} import main\nsys.exit(main())\n"


def checkout(folder: Path) -> None:
    """What Git would check out, uncommitted changes included."""
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def stock_environment(folder: Path, *extra: str) -> Path:
    """A Python environment of ansible-core, what it needs and ``extra``, as installed here; its programs' folder."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = next(folder.glob("lib/python3*/site-packages"))
    wanted, seen = ["ansible-core", *extra], set[str]()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            source = Path(str(distribution.locate_file(top)))
            if source.exists() and not (packages / top).exists():
                (packages / top).symlink_to(source)
        needs = map(Requirement, distribution.requires or ())
        wanted += [item.name for item in needs if item.marker is None or item.marker.evaluate({"extra": ""})]
    python = folder / "bin" / "python"
    for program, module in (("ansible-playbook", "playbook"), ("ansible-inventory", "inventory"), ("ansible", "adhoc")):
        (folder / "bin" / program).write_text(_ENTRY.format(python=python, module=module))
        (folder / "bin" / program).chmod(0o755)
    return folder / "bin"


def freeze(exported: Mapping[str, Any]) -> dict[str, Any]:
    """The inventory as a job gets it (Inventory.get_script_data): hosts by name, the database's own variables added."""
    known = exported["_meta"]["hostvars"]
    groups = {name: dict(value) for name, value in exported.items() if name not in ("_meta", "all")}
    hosts = sorted({host for group in groups.values() for host in group.get("hosts", ())} | set(known))
    hostvars = {}
    for number, host in enumerate(hosts, 1):
        added = {f"remote_{prefix}_{key}": value for prefix in ("host", "tower") for key, value in
                 {"enabled": "true", "id": number}.items()}  # fmt: skip
        hostvars[host] = {**known.get(host, {}), **added}
    grouped = {host for group in groups.values() for host in group.get("hosts", ())}
    rest = [host for host in hosts if host not in grouped]
    # An empty group is a child of all, and has no entry of its own.
    filled = {name: value for name, value in groups.items() if value}
    return {"all": {"hosts": rest, "children": list(groups)}, **filled, "_meta": {"hostvars": hostvars}}


def extra_vars(answers: Mapping[str, Any]) -> str:
    """Survey answers and AWX's own variables as it writes them: every string, keys included, is marked unsafe."""
    own = {f"{prefix}_{key}": value for prefix in ("awx", "tower") for key, value in
           {"job_id": 42, "job_launch_type": "manual", "user_name": "admin"}.items()}  # fmt: skip
    return yaml.dump({**answers, **own}, Dumper=_Unsafe, default_flow_style=False)


class _Unsafe(yaml.SafeDumper):
    """awx/main/utils/safe_yaml.py"""

    def represent_data(self, data: Any) -> yaml.Node:
        return self.represent_scalar("!unsafe", data) if isinstance(data, str) else super().represent_data(data)


@dataclass(frozen=True)
class Job:
    """How a job ended."""

    rc: int
    stdout: str
    events: list[dict[str, Any]]
    folder: Path

    def results(self, task: str) -> dict[str, dict[str, Any]]:
        """The results of a task, by host."""
        return {
            event["event_data"]["host"]: event["event_data"]["res"]
            for event in self.events
            if event.get("event_data", {}).get("task") == task and "res" in event["event_data"]
        }


@dataclass
class Replay:
    """A project in an AWX: its checkout, credential types, and the secrets of its credentials.

    Attributes:
        programs: folder of the execution environment's programs.
        base: folder for the private data directories (a short path: sockets live below).
    """

    base: Path
    programs: Path
    fleet_file: str
    keys_type: dict[str, Any]
    keys: dict[str, str]
    machine_key: str
    machine_user: str = "root"
    made: list[Path] = field(default_factory=list)

    def sync(self) -> dict[str, Any]:
        """Update the inventory from its source, the fleet file in the project; what AWX reads of it."""
        folder = self._private_data_dir()
        output = folder / "artifacts" / "41" / "output.json"
        output.parent.mkdir(parents=True)
        source = folder / "project" / self.fleet_file
        argv = ["ansible-inventory", "--list", "--export", "-i", str(source), "--output", str(output),
                "--playbook-dir", str(source.parent)]  # fmt: skip
        env = {**self._environment(folder), **SYNC_ENV, "INVENTORY_UPDATE_ID": "41", "INVENTORY_SOURCE_ID": "7"}
        env.update(credentials.inject(self.keys_type, self.keys, folder))
        done = subprocess.run(
            [str(self.programs / argv[0]), *argv[1:]], cwd=folder / "project", env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(output.read_text())
        return found

    def job(
        self,
        playbook: str,
        exported: Mapping[str, Any],
        answers: Mapping[str, Any] | None = None,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        timeout: float = 300,
    ) -> Job:
        """Run a job template: its playbook on a synced inventory, with the survey's answers and further arguments."""
        folder = self._private_data_dir()
        hosts = folder / "inventory" / "hosts"
        hosts.write_text(f"#! /usr/bin/env python3\nprint({json.dumps(freeze(exported))!r})\n")
        hosts.chmod(0o700)
        variables = {**self._environment(folder), **TASK_ENV, "JOB_ID": "42", "INVENTORY_ID": "3", **(env or {})}
        variables |= {"ANSIBLE_RETRY_FILES_ENABLED": "False", "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp")}
        variables |= {name: value.replace("requirements", f"{folder}/requirements") for name, value in PATHS.items()}
        variables |= credentials.inject(self.keys_type, self.keys, folder)
        files = {
            "envvars": yaml.safe_dump(variables),
            "cmdline": " ".join(["-u", self.machine_user, *arguments]),
            "extravars": extra_vars(answers or {}),
            "settings": json.dumps({"suppress_ansible_output": True, "pexpect_timeout": 1, "fact_cache_type": ""}),
        }
        if self.machine_key:
            files["ssh_key"] = self.machine_key
        for name, content in files.items():
            (folder / "env" / name).write_text(content)
            (folder / "env" / name).chmod(0o600)
        done = subprocess.run(
            [sys.executable, "-m", "ansible_runner", "run", str(folder), "-p", playbook, "--ident", "42",
             "--inventory", str(hosts)],
            env={"PATH": SYSTEM_PATH, "HOME": variables["HOME"], "LANG": "C.UTF-8"},
            capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        return _finished(folder, done)

    def _private_data_dir(self) -> Path:
        """A folder as RunJob.build_private_data_dir makes it, with the checkout in it."""
        folder = Path(tempfile.mkdtemp(prefix="awx_", dir=self.base))
        self.made.append(folder)
        for name in ("inventory", "env", "artifacts", "cp", "home"):
            (folder / name).mkdir(mode=0o700)
        shutil.copytree(self.base / "project", folder / "project")
        return folder

    def _environment(self, folder: Path) -> dict[str, str]:
        return {
            "PATH": f"{self.programs}:{SYSTEM_PATH}",
            "HOME": str(folder / "home"),
            "LANG": "C.UTF-8",
            "AWX_PRIVATE_DATA_DIR": str(folder),
        }


def _finished(folder: Path, done: subprocess.CompletedProcess[str]) -> Job:
    artifacts = folder / "artifacts" / "42"
    stdout = artifacts / "stdout"
    if not stdout.exists():
        raise AssertionError(f"ansible-runner did not start: {done.stdout}{done.stderr}")
    events = [json.loads(path.read_text()) for path in artifacts.glob("job_events/*-*.json")]
    events.sort(key=lambda event: event["counter"])
    return Job(int((artifacts / "rc").read_text()), stdout.read_text(), events, folder)


def forget_connections(replay: Replay) -> None:
    """End the ssh connections that jobs left open for their next task; AWX's container would end with them."""
    for folder in replay.made:
        for socket in (*folder.glob("home/.ansible/cp/**/*"), *folder.glob("cp/*")):
            if socket.is_socket():
                subprocess.run(["ssh", "-S", str(socket), "-O", "exit", "x"], capture_output=True, check=False)


def project(base: Path, fleet_text: str, fleet_file: str) -> None:
    """The clean checkout of which every private data directory gets a copy, with a fleet file in it."""
    checkout(base / "project")
    (base / "project" / fleet_file).parent.mkdir(parents=True, exist_ok=True)
    (base / "project" / fleet_file).write_text(fleet_text)
