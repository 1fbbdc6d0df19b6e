"""Both backends against real sshd processes: what connects, what fails and how it says so, and what is left behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lambdactl.fleet import ssh
from lambdactl.fleet.model import Fleet, Hop
from lambdactl.transport import Completed, Failure, Transport, TransportError, open_transport, process
from lambdactl.transport.open import why_not_asyncssh
from tests.bed import Bed
from tests.bed.sshd import descendants, free_port, make_key

KINDS = ("asyncssh", "openssh")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("LAMBDACTL_TRANSPORT", raising=False)
    return str(request.param)


@pytest.fixture
def make_bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bed]]:
    beds: list[Bed] = []

    def make(nodes: int = 2, **options: Any) -> Bed:
        bed = Bed(nodes, trace=True, **options)
        beds.append(bed)
        if len(beds) == 1:
            monkeypatch.setenv("HOME", str(bed.home))
            monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        bed.start()
        return bed

    yield make
    for bed in beds:
        bed.close()


@pytest.fixture
def bed(make_bed: Callable[..., Bed]) -> Bed:
    return make_bed()


def use(fleet: Fleet, kind: str, work: Callable[[Transport], Awaitable[Any]], **options: Any) -> Any:
    """Open a transport, work with it, close it, and see that no process of it is left."""

    async def go() -> Any:
        async with open_transport(fleet, kind=kind, **options) as transport:  # type: ignore[arg-type]  # options of any kind, by name
            return await work(transport)

    before = set(descendants(os.getpid()))
    result = asyncio.run(go())
    assert left_over(before) == []
    sockets = Path(fleet.control_dir).expanduser()
    assert [path for path in sockets.glob("**/*") if path.is_socket() or path.is_dir()] == []
    return result


def left_over(before: set[int]) -> list[str]:
    """ssh processes below this one, or that a detached master of a bed left, that were not there before."""
    found = subprocess.run(["ps", "-eo", "pid,stat,args"], capture_output=True, text=True).stdout.splitlines()
    ours = set(descendants(os.getpid())) - before
    lines = [line for line in found[1:] if re.search(r"\bssh -", line) and "Z" not in line.split()[1]]
    return [
        line for line in lines if int(line.split()[0]) in ours or "/tmp/lbed-" + Path.home().parent.name[5:] in line
    ]


async def echo(transport: Transport) -> dict[str, Any]:
    return await transport.fan_out("echo $LAMBDACTL_ROOT; cat; echo oops >&2; exit 3", input=b"in\n", timeout=60)


@pytest.mark.parametrize("nodes", [64, 256])
def test_wide_fan_out_through_a_stock_jump_host(make_bed: Callable[..., Bed], kind: str, nodes: int) -> None:
    bed = make_bed(nodes)
    seen: list[str] = []

    async def work(transport: Transport) -> Any:
        first = await transport.connect(on_result=lambda name, _: seen.append(name))
        return first, await echo(transport), await transport.fan_out("true")

    connected, results, again = use(bed.fleet(), kind, work)
    assert connected == dict.fromkeys(bed.addresses)
    assert sorted(seen) == sorted(bed.addresses)
    for address in bed.addresses:
        assert results[address] == Completed(address, 3, f"{bed.roots / address}\nin\n".encode(), b"oops\n")
        assert again[address] == Completed(address, 0, b"", b"")
    assert bed.jump_logins() == 1
    assert bed.node_logins() == dict.fromkeys(bed.addresses, 1)
    assert bed.forwards() == dict.fromkeys(bed.addresses, 1)  # the nodes were reached through it, not around it


def test_two_hops_are_one_connection_each(make_bed: Callable[..., Bed], kind: str) -> None:
    bed = make_bed(4, jumps=2)
    results = use(bed.fleet(), kind, echo)
    assert [result.rc for result in results.values()] == [3] * 4
    assert (bed.jump_logins(0), bed.jump_logins(1)) == (1, 1)
    assert bed.forwards(0) == {bed.jumps[1].address: 1}
    assert sum(bed.forwards(1).values()) == 4


def test_a_fleet_without_jump_host(make_bed: Callable[..., Bed], kind: str) -> None:
    bed = make_bed(2, jumps=0)
    assert [result.rc for result in use(bed.fleet(), kind, echo).values()] == [3, 3]


def test_bad_hosts_never_hide_the_others(bed: Bed, kind: str) -> None:
    base = Hop("", bed.node.port, bed.user, str(bed.key))
    with socket.socket() as silent:
        silent.bind(("127.1.0.8", 0))
        silent.listen(16)
        bad = [
            replace(base, hostname="127.1.0.9", port=free_port("127.1.0.9")),
            replace(base, hostname="no-such-host.invalid"),
            replace(base, hostname="127.1.0.8", port=silent.getsockname()[1]),
            replace(base, hostname="127.1.0.7", user="nobody-of-that-name"),
        ]
        results = use(bed.fleet(nodes=bad), kind, echo, connect_timeout=3)
    assert [results[name].rc for name in bed.addresses] == [3, 3]
    refused, unknown, hanging, stranger = (results[f"extra{index}"] for index in range(2, 6))
    assert (refused.kind, "refuses connections" in refused.message) == ("unreachable", True)
    assert (unknown.kind, "not known to jump host 127.0.0.2" in unknown.message) == ("unreachable", True)
    assert (hanging.kind, "did not answer" in hanging.message) == ("timeout", True)
    assert (stranger.kind, "user nobody-of-that-name with key " in stranger.message) == ("auth", True)


FAILURES: dict[str, tuple[Callable[[Bed], Fleet], str, str]] = {
    "jump refused": (lambda bed: at_jump(bed, port=free_port("127.0.0.2")), "jump-unreachable", "refuses connections"),
    "jump name": (
        lambda bed: at_jump(bed, hostname="no-jump.invalid"),
        "jump-unreachable",
        "not known to this machine",
    ),
    "jump key": (lambda bed: at_jump(bed, identity_file=str(stranger(bed))), "jump-auth", "refused the login of user"),
    "node key": (lambda bed: bed.fleet(identity_file=str(stranger(bed))), "auth", "refused the login of user"),
    "no key file": (lambda bed: bed.fleet(identity_file="/nowhere/id"), "auth", "the file does not exist"),
    "no variable": (lambda bed: bed.fleet(identity_file="$BED_HAS_NO_KEY"), "auth", "BED_HAS_NO_KEY"),
    "passphrase": (lambda bed: bed.fleet(identity_file=str(locked(bed))), "auth", "protected by a passphrase"),
}


def at_jump(bed: Bed, **fields: Any) -> Fleet:
    return bed.fleet(jumps=[replace(bed.hops()[0], **fields)])


def stranger(bed: Bed) -> Path:
    return make_key(bed.directory / "stranger")


def locked(bed: Bed) -> Path:
    key = make_key(bed.directory / "locked", passphrase="not telling")
    bed.authorize(key)
    return key


@pytest.mark.parametrize("case", FAILURES)
def test_each_failure_has_its_kind_and_its_words(bed: Bed, kind: str, case: str) -> None:
    fleet_of, expected, words = FAILURES[case]
    results = use(fleet_of(bed), kind, echo)
    assert {result.kind for result in results.values()} == {expected}
    assert all(words in result.message and result.remedy for result in results.values())
    assert [result.host for result in results.values()] == list(bed.addresses)


def test_a_refused_key_is_not_tried_on_every_host(make_bed: Callable[..., Bed], kind: str) -> None:
    bed = make_bed(20)
    results = use(bed.fleet(identity_file=str(stranger(bed))), kind, echo)
    assert {result.kind for result in results.values()} == {"auth"}
    assert sum("was not tried" in result.message for result in results.values()) == 17


@pytest.mark.parametrize("where", ["jump", "node"])
def test_a_changed_host_key_is_refused_with_the_remedy(bed: Bed, kind: str, where: str) -> None:
    fleet = bed.fleet()
    use(fleet, kind, echo)
    server = bed.jumps[0] if where == "jump" else bed.node
    server.restart_with_new_host_key("ecdsa")
    results = use(fleet, kind, echo)
    file = Path(fleet.known_hosts).expanduser()
    for name, result in results.items():
        assert isinstance(result, Failure)
        assert result.kind == "host-key"
        filed = f"[{server.address if where == 'jump' else name}]:{server.port}"
        assert re.search(re.escape(f"{file}:") + r"[1-9]", result.message)
        assert f"ssh-keygen -R '{filed}' -f '{file}'" in result.remedy
        subprocess.run(["bash", "-c", result.remedy.partition("with: ")[2]], check=True, capture_output=True)
    assert server.logins() == {}  # the new machine never saw a login
    assert [result.rc for result in use(fleet, kind, echo).values()] == [3, 3]


def test_host_keys_that_cannot_be_kept_are_refused_with_the_files_name(bed: Bed) -> None:
    fleet = bed.fleet()
    file = Path(fleet.known_hosts).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.symlink_to("/proc/none/known_hosts")
    results = use(fleet, "asyncssh", echo)
    assert {result.kind for result in results.values()} == {"host-key"}
    assert all(f"cannot be kept: {file}: No such file" in result.message for result in results.values())


def test_both_kinds_trust_what_the_other_one_filed(bed: Bed) -> None:
    fleet = bed.fleet()
    for kind in (*KINDS, *KINDS):
        assert [result.rc for result in use(fleet, kind, echo).values()] == [3, 3]
    assert len(Path(fleet.known_hosts).expanduser().read_text().splitlines()) == 3


def test_a_strict_policy_trusts_only_what_is_on_file(bed: Bed, kind: str) -> None:
    strict = replace(bed.fleet(), host_key_policy="yes")
    assert {result.kind for result in use(strict, kind, echo).values()} == {"host-key"}
    use(bed.fleet(), kind, echo)
    assert [result.rc for result in use(strict, kind, echo).values()] == [3, 3]


def test_a_jump_host_that_forbids_forwarding(make_bed: Callable[..., Bed], kind: str) -> None:
    bed = make_bed()
    bed.jumps[0].stop()
    bed.jumps[0].options["AllowTcpForwarding"] = "no"
    bed.jumps[0].start()
    results = use(bed.fleet(), kind, echo)
    assert {result.kind for result in results.values()} == {"jump-forwarding"}
    assert all("AllowTcpForwarding" in result.remedy for result in results.values())


def test_two_fleets_with_the_same_addresses_stay_apart(make_bed: Callable[..., Bed], kind: str) -> None:
    one, two = make_bed(name="one"), make_bed(name="two")
    two.node.stop()
    two.node.options["Port"] = str(one.node.port)
    one_fleet, two_fleet = one.fleet(), two.fleet()
    use(one_fleet, kind, echo)
    one.node.stop()
    two.node.port = one.node.port
    two.node.start()
    results = use(two.fleet(), kind, echo)  # the same host:port, another key, and no complaint
    assert [result.stdout.splitlines()[0].decode() for result in results.values()] == [
        str(two.roots / address) for address in two.addresses
    ]
    assert one_fleet.control_dir != two_fleet.control_dir
    assert one.jump_logins() == two.jump_logins() == 1


@pytest.fixture
def agent(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = bed.directory / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    while not path.exists():
        assert process.poll() is None
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    yield path
    process.kill()
    process.wait()


@pytest.mark.parametrize("named", [True, False])
def test_a_key_that_only_the_agent_can_use(bed: Bed, agent: Path, kind: str, named: bool) -> None:
    subprocess.run(["ssh-add", "-q", str(bed.key)], check=True)
    identity = None
    if named:  # the file is there, and needs a passphrase that the agent was told before
        subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(bed.key)], check=True, capture_output=True)
        identity = str(bed.key)
    fleet = bed.fleet(identity_file=identity, jumps=[replace(bed.hops()[0], identity_file=identity)])
    assert [result.rc for result in use(fleet, kind, echo).values()] == [3, 3]
    assert asyncio.run(why_not_asyncssh(fleet)) is None


def test_auto_leaves_passphrases_to_openssh(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    async def name(transport: Transport) -> str:
        return transport.kind

    assert use(bed.fleet(), "auto", name) == "asyncssh"
    assert use(bed.fleet(identity_file=str(locked(bed))), "auto", name) == "openssh"
    monkeypatch.setenv("LAMBDACTL_TRANSPORT", "openssh")
    assert use(bed.fleet(), "asyncssh", name) == "openssh"


def test_more_commands_than_sessions_wait_their_turn(bed: Bed, kind: str) -> None:
    async def work(transport: Transport) -> Any:
        return await asyncio.gather(*(transport.run("127.1.0.1", "sleep 0.1; cat", input=b"x") for _ in range(30)))

    assert [result.stdout for result in use(bed.fleet(), kind, work)] == [b"x"] * 30
    assert bed.node_logins() == {"127.1.0.1": 1}


def test_results_carry_what_the_command_did(bed: Bed, kind: str) -> None:
    async def work(transport: Transport) -> Any:
        big = os.urandom(8 << 20)
        echoed = await transport.run("127.1.0.1", "cat", input=big)
        assert isinstance(echoed, Completed)
        assert echoed.stdout == big
        unread = await transport.run("127.1.0.1", "exit 4", input=big)
        late = await transport.run("127.1.0.1", "sleep 60", timeout=0.3)
        own = await transport.run("127.1.0.1", "exit 255")
        split = await transport.fan_out({"127.1.0.1": "echo a", "127.1.0.2": ("cat", b"b\n")})
        return unread, late, own, [result.stdout for result in split.values()]

    unread, late, own, split = use(bed.fleet(), kind, work)
    assert (unread.rc, own.rc, late.kind, split) == (4, 255, "timeout", [b"a\n", b"b\n"])
    assert "0.3 s" in late.message


def test_a_connection_cut_under_a_command_and_a_channel(bed: Bed, kind: str) -> None:
    async def work(transport: Transport) -> Any:
        channel = await transport.channel("127.1.0.1", "echo begin; exec sleep 60")
        assert await channel.read() == b"begin\n"
        running = asyncio.create_task(transport.run("127.1.0.1", "sleep 60"))
        await asyncio.sleep(0.5)
        bed.node.drop_sessions()
        result = await running
        assert await channel.read() == b""
        with pytest.raises(TransportError) as lost:
            await channel.wait()
        return result, lost.value.failure, await transport.run("127.1.0.1", "echo again")

    result, failure, again = use(bed.fleet(), kind, work)
    assert (result.kind, failure.kind) == ("lost", "lost")
    assert again.stdout == b"again\n"  # the next call connects anew


def test_a_jump_connection_that_was_cut_is_opened_again(bed: Bed, kind: str) -> None:
    async def work(transport: Transport) -> Any:
        await transport.connect()
        bed.jumps[0].drop_sessions()
        await asyncio.sleep(0.5)
        return await echo(transport)

    assert [result.rc for result in use(bed.fleet(), kind, work).values()] == [3, 3]
    assert bed.jump_logins() == 2


def test_certificates_of_users_and_hosts(bed: Bed, kind: str) -> None:
    authority = make_key(bed.directory / "ca")
    bed.authorized_keys.write_text("")
    sign = ["ssh-keygen", "-q", "-s", str(authority)]
    subprocess.run([*sign, "-I", "me", "-n", bed.user, str(bed.key)], check=True)
    subprocess.run([*sign, "-h", "-I", "host", str(bed.node.host_key)], check=True)
    for server in (*bed.jumps, bed.node):
        server.stop()
        server.options["TrustedUserCAKeys"] = f"{authority}.pub"
    bed.node.options["HostCertificate"] = f"{bed.node.host_key}-cert.pub"
    for server in (*bed.jumps, bed.node):
        server.start()
    fleet = replace(bed.fleet(), host_key_policy="accept-new")
    known = Path(fleet.known_hosts).expanduser()
    known.write_text(f"@cert-authority [127.1.*]:{bed.node.port} {authority.with_suffix('.pub').read_text()}")
    assert [result.rc for result in use(fleet, kind, echo).values()] == [3, 3]
    assert len(known.read_text().splitlines()) == 2  # only the jump host was new


def test_a_controller_that_is_killed_leaves_no_connection_to_a_node(bed: Bed, kind: str) -> None:
    fleet = bed.fleet()
    pid = os.fork()
    if pid == 0:

        async def hold(transport: Transport) -> None:
            await transport.connect()
            (bed.directory / "connected").touch()
            await asyncio.sleep(60)

        use(fleet, kind, hold)
        os._exit(1)
    while not (bed.directory / "connected").exists():
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    assert bed.node.sessions()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    # The jump's connection is shared with others, and may stay until it has idled for long enough.
    subprocess.run(ssh.close_argv(fleet, fleet.hosts[0].route.hops), capture_output=True)
    wait_until(lambda: not bed.node.sessions())
    wait_until(lambda: not left_over(set()))


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to pass")


def test_a_channel_streams_both_ways_and_waits_for_a_slow_reader(bed: Bed, kind: str) -> None:
    size = 24 << 20

    async def work(transport: Transport) -> Any:
        chat = await transport.channel("127.1.0.1", "cat; echo err >&2; exit 6")
        for line in (b"one\n", b"two\n"):
            await chat.write(line)
            assert await chat.read() == line
        await chat.write_eof()
        assert (await chat.read(), await chat.wait(), chat.stderr) == (b"", 6, b"err\n")
        flood = await transport.channel("127.1.0.2", f"head -c {size} /dev/zero; exit 2")
        await asyncio.sleep(0.5)
        total = 0
        while chunk := await flood.read():
            total += len(chunk)
        assert (total, await flood.wait(), flood.failure) == (size, 2, None)
        endless = await transport.channel("127.1.0.2", "cat /dev/zero")
        assert len(await endless.read(5)) == 5
        await endless.close()

    use(bed.fleet(), kind, work)


def test_a_local_port_leads_to_the_node(bed: Bed, kind: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        writer.close()

    async def work(transport: Transport) -> bytes:
        server = await asyncio.start_server(serve, "127.0.0.1")
        listener = await transport.forward("127.1.0.1", server.sockets[0].getsockname()[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"hello\n")
        answer = await reader.read()
        writer.close()
        await listener.close()
        with pytest.raises(OSError, match="Connect"):
            await asyncio.open_connection("127.0.0.1", listener.port)
        server.close()
        return answer

    assert use(bed.fleet(), kind, work) == b"HELLO\n"


@pytest.mark.parametrize("after", [0.02, 0.15, 0.6])
def test_cancellation_leaves_nothing(bed: Bed, kind: str, after: float) -> None:
    fleet = bed.fleet()

    async def work(transport: Transport) -> str:
        task = asyncio.create_task(transport.fan_out("sleep 60"))
        await asyncio.sleep(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return "cancelled"

    assert use(fleet, kind, work) == "cancelled"


def test_a_cancelled_start_ends_what_the_process_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    real = asyncio.create_subprocess_exec
    made: list[asyncio.subprocess.Process] = []
    runs = asyncio.Event()

    async def slow(*argv: Any, **options: Any) -> asyncio.subprocess.Process:
        made.append(await real(*argv, **options))
        assert made[0].stdout is not None
        await made[0].stdout.readline()  # its child runs now, and the caller does not have it yet
        runs.set()
        await asyncio.sleep(0.2)
        return made[0]

    async def go() -> None:
        task = asyncio.create_task(process.start(["sh", "-c", "sleep 60 & echo; wait"]))
        await runs.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slow)
    asyncio.run(go())
    listed = subprocess.run(["ps", "-eo", "pgid,stat"], capture_output=True, text=True).stdout.splitlines()
    assert [line for line in listed if line.split()[0] == str(made[0].pid) and "Z" not in line] == []


def test_importing_the_transport_imports_no_asyncssh() -> None:
    code = "import sys, lambdactl.transport, lambdactl.transport.broker; sys.exit('asyncssh' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
