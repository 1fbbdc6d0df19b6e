"""How routes are spelled, as OpenSSH itself (``ssh -G``) and a real shell understand them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambdactl.errors import LambdactlError, SpecError
from lambdactl.fleet import ssh
from lambdactl.fleet.model import Fleet, Overrides
from lambdactl.spec import loads

FILE = """
type: fleet
name: lab
ssh_config:
  user: ubuntu
  identity_file: "~/my keys/node"
  hosts:
    - one
    - {hostname: 10.0.0.2, port: 2222, user: root, identity_file: /k/two}
    - {hostname: three, proxy_jump: []}
    - hostname: fd00::4
      proxy_jump: [{hostname: out, user: a, port: 2200, identity_file: ~/o}, {hostname: mid, user: b}]
  proxy_jump: {hostname: jump.example.com, user: me, port: 2022, identity_file: "~/my keys/jump"}
"""


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with a path short enough for sockets, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="home-", dir="/tmp") as folder:
        monkeypatch.setenv("HOME", folder)
        yield Path(folder)


@pytest.fixture
def lab(home: Path) -> Fleet:
    return Fleet.from_spec(loads(FILE, filename="lab.yml", kind="fleet"), path="lab.yml", overrides=Overrides())


def ssh_g(*args: str) -> dict[str, str]:
    """What ``ssh -G`` makes of its arguments (the last of keys that come more than once)."""
    done = subprocess.run(["ssh", "-G", *args], capture_output=True, text=True, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


def resolved(fleet: Fleet, name: str) -> dict[str, str]:
    """What OpenSSH makes of a host's variables, in the order in which Ansible's ssh plugin puts them together."""
    variables = ssh.host_vars(fleet, fleet.host(name))
    key = variables.get("ansible_ssh_private_key_file")
    args = ["-o", f"Port={variables['ansible_port']}", "-o", f'User="{variables["ansible_user"]}"']
    args += ["-o", f'IdentityFile="{os.path.expanduser(key)}"'] if key else []
    args += shlex.split(variables["ansible_ssh_common_args"])
    return ssh_g("-F", "none", *args, variables["ansible_host"])


def words_of(command: str, environment: dict[str, str] | None = None) -> list[str]:
    """The arguments that a ProxyCommand's ssh gets: a real shell splits it, ssh is replaced by a printer."""
    printer = "import json,sys; print(json.dumps(sys.argv[1:]))"
    script = f"ssh() {{ python3 -c '{printer}' \"$@\"; }}\n{command}"
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, check=True, env={**os.environ, **(environment or {})}
    )
    words: list[str] = json.loads(done.stdout)
    return words


def expanded(proxy_command: str, host: str, port: int) -> str:
    """As ssh hands it to the shell: its tokens replaced."""
    return proxy_command.replace("%%", "\0").replace("%h", host).replace("%p", str(port)).replace("\0", "%")


def test_host_variables_of_a_jumped_host(lab: Fleet, home: Path) -> None:
    got = resolved(lab, "10.0.0.2")
    assert (got["user"], got["port"], got["hostname"]) == ("root", "2222", "10.0.0.2")
    assert got["identityfile"] == "/k/two"
    assert got["identitiesonly"] == "yes"
    assert got["stricthostkeychecking"] == "accept-new"
    assert got["userknownhostsfile"] == f"{home}/.ssh/known_hosts.lambdactl-{lab.id}"
    assert got["kexalgorithms"].split(",")[0] in ("curve25519-sha256", "mlkem768x25519-sha256")
    assert "sntrup" not in got["kexalgorithms"]
    assert got.get("compression") == "no"

    hop = ssh_g("-F", "none", *words_of(expanded(got["proxycommand"], "10.0.0.2", 2222)))
    assert (hop["user"], hop["port"], hop["hostname"]) == ("me", "2022", "jump.example.com")
    assert hop["identityfile"] == f"{home}/my keys/jump"
    assert hop["identitiesonly"] == "yes"
    assert hop["stricthostkeychecking"] == "accept-new"
    assert hop["userknownhostsfile"] == got["userknownhostsfile"]
    assert hop["controlpath"] == os.path.expanduser(ssh.jump_socket(lab, lab.host("10.0.0.2").route.hops))
    assert hop["controlmaster"] == "false"
    assert "sntrup" in hop["kexalgorithms"]


def test_two_hops_nest(lab: Fleet, home: Path) -> None:
    got = resolved(lab, "fd00::4")
    outer_words = words_of(expanded(got["proxycommand"], "fd00::4", 22))
    assert outer_words[outer_words.index("-W") + 1] == "[fd00::4]:22"
    second = ssh_g("-F", "none", *outer_words)
    assert (second["user"], second["hostname"]) == ("b", "mid")
    assert second["identitiesonly"] == "no"
    inner_words = words_of(expanded(second["proxycommand"], "mid", 22))
    assert inner_words[inner_words.index("-W") + 1] == "[mid]:22"
    first = ssh_g("-F", "none", *inner_words)
    assert (first["user"], first["hostname"], first["port"]) == ("a", "out", "2200")
    assert first["identityfile"] == f"{home}/o"
    assert first["controlpath"] != second["controlpath"]


def test_three_hops_keep_their_quoting(home: Path) -> None:
    jumps = ", ".join(f"{{hostname: j{n}, user: u{n}, identity_file: '~/key {n}'}}" for n in (1, 2, 3))
    text = f"type: fleet\nname: deep\nssh_config: {{user: u, hosts: [n], proxy_jump: [{jumps}]}}"
    fleet = Fleet.from_spec(loads(text, kind="fleet"), path=None, overrides=Overrides())
    options, host = resolved(fleet, "n"), "n"
    for number in (3, 2, 1):
        words = words_of(expanded(options["proxycommand"], host, 22))
        assert words[words.index("-W") + 1] == f"[{host}]:22"
        options, host = ssh_g("-F", "none", *words), f"j{number}"
        assert (options["hostname"], options["identityfile"]) == (host, f"{home}/key {number}")


def test_direct_host(lab: Fleet) -> None:
    got = resolved(lab, "three")
    assert "proxycommand" not in got
    assert "sntrup" in got["kexalgorithms"] or "mlkem" in got["kexalgorithms"]


def test_ansible_keeps_its_own_multiplexing(lab: Fleet) -> None:
    for host in lab.hosts:
        text = json.dumps(ssh.host_vars(lab, host)["ansible_ssh_common_args"]).lower()
        assert "controlpath" not in text
        assert "controlpersist" not in text


def test_no_key_means_the_agent(home: Path) -> None:
    text = "type: fleet\nname: agent\nssh_config: {user: u, hosts: [n], proxy_jump: {hostname: j}}"
    fleet = Fleet.from_spec(loads(text, kind="fleet"), path=None, overrides=Overrides())
    variables = ssh.host_vars(fleet, fleet.hosts[0])
    assert "ansible_ssh_private_key_file" not in variables
    assert "IdentitiesOnly" not in variables["ansible_ssh_common_args"]
    assert " -i " not in variables["ansible_ssh_common_args"]


def test_keys_named_by_the_environment_are_looked_up_late(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = Overrides(identity_file="$NODE_KEY", jump_identity_file="$LAMBDACTL_JUMP_KEY")
    fleet = Fleet.from_spec(loads(FILE, kind="fleet"), path=None, overrides=overrides)
    variables = ssh.host_vars(fleet, fleet.hosts[0])
    assert variables["ansible_ssh_private_key_file"] == "{{ lookup('ansible.builtin.env', 'NODE_KEY') }}"
    options = ssh_g("-F", "none", *shlex.split(variables["ansible_ssh_common_args"]), "one")
    words = words_of(expanded(options["proxycommand"], "one", 22), {"LAMBDACTL_JUMP_KEY": "/run/job 7/$key"})
    assert words[words.index("-i") + 1] == "/run/job 7/$key"

    argv = ssh.jump_master_argv
    with pytest.raises(SpecError, match="LAMBDACTL_JUMP_KEY"):
        argv(fleet, fleet.hosts[0].route.hops)
    monkeypatch.setenv("LAMBDACTL_JUMP_KEY", "/run/8")
    assert "IdentityFile=/run/8" in argv(fleet, fleet.hosts[0].route.hops)


def test_ssh_config_of_every_alias(lab: Fleet, home: Path) -> None:
    config = home / "config"
    config.write_text(ssh.ssh_config(lab))
    known = f"{home}/.ssh/known_hosts.lambdactl-{lab.id}"

    jump = ssh_g("-F", str(config), "lab-jump")
    assert (jump["hostname"], jump["user"], jump["port"]) == ("jump.example.com", "me", "2022")
    assert jump["identityfile"] == f"{home}/my keys/jump"
    assert jump["controlmaster"] == "auto"
    assert jump["controlpath"] == os.path.expanduser(ssh.jump_socket(lab, lab.hosts[0].route.hops))
    assert jump["controlpersist"] == str(ssh.CONTROL_PERSIST)
    assert (jump["userknownhostsfile"], jump["stricthostkeychecking"]) == (known, "accept-new")

    assert ssh_g("-F", str(config), "lab-jump2")["hostname"] == "out"
    last = ssh_g("-F", str(config), "lab-jump3")
    assert (last["hostname"], last["proxyjump"]) == ("mid", "lab-jump2")

    expected = {
        "one": ("one", "ubuntu", "22", f"{home}/my keys/node", "lab-jump"),
        "10.0.0.2": ("10.0.0.2", "root", "2222", "/k/two", "lab-jump"),
        "three": ("three", "ubuntu", "22", f"{home}/my keys/node", None),
        "fd00::4": ("fd00::4", "ubuntu", "22", f"{home}/my keys/node", "lab-jump3"),
    }
    for alias, (hostname, user, port, key, proxy) in expected.items():
        got = ssh_g("-F", str(config), alias)
        assert (got["hostname"], got["user"], got["port"], got["identityfile"]) == (hostname, user, port, key)
        assert (got["userknownhostsfile"], got["stricthostkeychecking"]) == (known, "accept-new")
        assert got.get("proxyjump") == proxy
        assert got.get("controlpath", "none") == "none"


def test_the_address_is_an_alias_where_the_name_differs(home: Path) -> None:
    text = "type: fleet\nname: lab\nssh_config: {user: u, hosts: [10.0.0.1]}"
    fleet = Fleet.from_spec(loads(text, kind="fleet"), path=None, overrides=Overrides())
    variables = ssh.host_vars(fleet, fleet.hosts[0])
    config = ssh.ssh_config(Fleet.from_hostvars({"node-1": variables}, ["node-1"]))
    assert "Host node-1 10.0.0.1\n" in config


def test_master_and_node_commands(lab: Fleet, home: Path) -> None:
    hops = lab.hosts[0].route.hops
    socket = os.path.expanduser(ssh.jump_socket(lab, hops))
    master = ssh_g("-F", "none", *ssh.jump_master_argv(lab, hops)[1:])
    assert (master["controlmaster"], master["controlpath"], master["hostname"]) == ("true", socket, "jump.example.com")
    assert (master["batchmode"], master["forwardagent"], master["forwardx11"]) == ("no", "no", "no")
    assert ssh_g("-F", "none", *ssh.jump_master_argv(lab, hops, batch=True)[1:])["batchmode"] == "yes"
    assert ssh.close_argv(lab, hops) == ["ssh", "-S", socket, "-O", "exit", "--", "jump.example.com"]
    assert ssh.check_argv(lab, hops)[3:5] == ["-O", "check"]

    argv = ssh.node_argv(lab, lab.hosts[1], "uname", "-a")
    assert argv[-3:] == ["10.0.0.2", "uname", "-a"]
    node = ssh_g("-F", "none", *argv[1:-2])
    assert (node["user"], node["port"], node["identityfile"]) == ("root", "2222", "/k/two")
    assert node.get("controlpath", "none") == "none"
    assert node["proxycommand"] == resolved(lab, "10.0.0.2")["proxycommand"]
    assert ssh_g("-F", "none", *ssh.node_argv(lab, lab.hosts[1], control="/s")[1:])["controlpath"] == "/s"

    inner = ssh_g("-F", "none", *ssh.jump_master_argv(lab, lab.host("fd00::4").route.hops)[1:])
    assert inner["hostname"] == "mid"
    assert "-l a" in inner["proxycommand"]


def test_sockets_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """ssh adds 17 characters while it makes a socket; the smallest sun_path has 104 bytes. Ansible's names have 10."""
    home = "/" + "h" * 39
    monkeypatch.setenv("HOME", home)
    text = (
        "type: fleet\nname: lab\nssh_config:\n  user: u\n  hosts: [{hostname: a, proxy_jump: {hostname: x}}, "
        "{hostname: a, proxy_jump: {hostname: y}}]"
    )
    fleet = Fleet.from_spec(loads(text, kind="fleet"), path=None, overrides=Overrides())
    for host in fleet.hosts:
        socket = ssh.jump_master_argv(fleet, host.route.hops)[4]
        assert socket.startswith(f"{home}/.ansible/cp/")
        assert len(socket) + 17 < 104
        folder = ssh.host_vars(fleet, host)["ansible_control_path_dir"]
        assert len(os.path.expanduser(folder)) + 1 + 10 + 17 < 104
    monkeypatch.setenv("HOME", "/" + "h" * 80)
    with pytest.raises(LambdactlError, match=r"more than 87 bytes.*Set HOME"):
        ssh.jump_master_argv(fleet, fleet.hosts[0].route.hops)


def test_tilde_stays_where_ssh_and_python_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """An AWX job runs in another container than the inventory's sync, with another home."""
    import pwd

    monkeypatch.setenv("HOME", pwd.getpwuid(os.getuid()).pw_dir)
    fleet = Fleet.from_spec(loads(FILE, kind="fleet"), path=None, overrides=Overrides())
    for host in fleet.hosts:
        assert os.path.expanduser("~") + "/" not in json.dumps(ssh.host_vars(fleet, host))


def test_prepare_makes_private_folders(lab: Fleet, home: Path) -> None:
    ssh.prepare(lab)
    ssh.prepare(lab)
    for folder in (home / ".ssh", home / ".ansible/cp" / lab.id):
        assert folder.is_dir()
        assert folder.stat().st_mode & 0o777 == 0o700
