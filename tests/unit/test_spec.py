"""What the files are read into: values, defaults, lines, and the limits on hostile input."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdactl import spec
from lambdactl.errors import SpecError
from lambdactl.spec import nodes, values
from lambdactl.spec.values import EnvVar, Range

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "spec" / "valid"


def fleet(name: str) -> spec.FleetSpec:
    loaded = spec.load(DATA / f"{name}.yml")
    assert isinstance(loaded, spec.FleetSpec)
    return loaded


def task(text: str) -> spec.TaskSpec:
    loaded = spec.loads(f"type: task\ncommands: [a]\n{text}")
    assert isinstance(loaded, spec.TaskSpec)
    return loaded


def test_reference_fleet() -> None:
    loaded = spec.load(ROOT / "examples" / "lambda-fleet.dstack.yml", kind="fleet")
    assert isinstance(loaded, spec.FleetSpec)
    config = loaded.ssh_config
    assert config is not None
    assert (loaded.name, loaded.placement) == ("lambda-fleet", "cluster")
    assert [(host.hostname, host.line) for host in config.hosts] == [
        ("worker-gpu-8x-b200-rplfm-ll9nr", 8),
        ("worker-gpu-8x-b200-rplfm-qrcs9", 9),
    ]
    assert config.proxy_jump == (
        spec.ProxyJump(hostname="192.222.55.54", user="ubuntu", identity_file="~/.ssh/id_rsa"),
    )


def test_reference_kubernetes_fleet() -> None:
    loaded = spec.load(ROOT / "examples" / "lambda-kubernetes-fleet.dstack.yml")
    assert isinstance(loaded, spec.FleetSpec)
    assert loaded.nodes == spec.NodesRange(min=0, target=0, max=None)
    assert loaded.backends == ("kubernetes",)
    assert loaded.resources is not None
    assert loaded.resources.explicit == {"gpu"}


def test_reference_task() -> None:
    loaded = spec.load(ROOT / "examples" / "lambda-nccl-tests.dstack.yml")
    assert isinstance(loaded, spec.TaskSpec)
    assert (loaded.nodes, loaded.startup_order, loaded.stop_criteria) == (2, "workers-first", "master-done")
    assert loaded.resources.gpu == spec.GPU(vendor="nvidia", name=("B200",), count=Range(8, 8))
    assert loaded.resources.shm_size == 16
    assert loaded.resources.explicit == {"gpu", "shm_size"}
    assert (loaded.on_node_failure, loaded.stop_signal, loaded.stop_grace) == ("stop", "SIGINT", 10)


def test_hops_and_network() -> None:
    config = fleet("fleet-two-hops").ssh_config
    assert config is not None
    assert [hop.hostname for hop in config.proxy_jump] == ["outer.example.com", "inner"]
    assert config.network == "10.0.0.0/24"
    assert [host.proxy_jump for host in config.hosts] == [None, ()]


def test_merge_keys() -> None:
    config = fleet("fleet-anchors").ssh_config
    assert config is not None
    assert [(host.hostname, host.port, host.proxy_jump) for host in config.hosts] == [
        ("a", 2222, config.proxy_jump),
        ("b", 2222, config.proxy_jump),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2", (2, 2, 2)),
        ('"2"', (2, 2, 2)),
        ("0..2", (0, 0, 2)),
        ("2..", (2, 2, None)),
        ("..2", (0, 0, 2)),
        ("..", (0, 0, None)),
        ("{}", (0, 0, None)),
        ("{min: 1, target: 2, max: 3}", (1, 2, 3)),
        ("{target: 2}", (0, 2, None)),
        ("{max: 2}", (0, 0, 2)),
    ],
)
def test_fleet_nodes(text: str, expected: tuple[int, int, int | None]) -> None:
    loaded = spec.loads(f"type: fleet\nnodes: {text}\n")
    assert isinstance(loaded, spec.FleetSpec)
    assert loaded.nodes is not None
    assert (loaded.nodes.min, loaded.nodes.target, loaded.nodes.max) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8", spec.GPU(count=Range(8, 8))),
        ("1..8", spec.GPU(count=Range(1, 8))),
        ("nvidia:B200:8", spec.GPU(vendor="nvidia", name=("B200",), count=Range(8, 8))),
        ("8:B200:NVIDIA", spec.GPU(vendor="nvidia", name=("B200",), count=Range(8, 8))),
        ("H100:80GB:1..2", spec.GPU(name=("H100",), memory=Range(80.0, 80.0), count=Range(1, 2))),
        ("24GB", spec.GPU(memory=Range(24.0, 24.0))),
        ("80GB..", spec.GPU(memory=Range(80.0, None))),
        ("40GB..80GB", spec.GPU(memory=Range(40.0, 80.0))),
        ("A10,A10G:2", spec.GPU(name=("A10", "A10G"), count=Range(2, 2))),
        ("tpu:v5p-8", spec.GPU(vendor="google", name=("v5p-8",))),
        ("tt:n150", spec.GPU(vendor="tenstorrent", name=("n150",))),
        ("tpu-v3-2048", spec.GPU(name=("v3-2048",))),
        ("1.. : H100", spec.GPU(name=("H100",), count=Range(1, None))),
    ],
)
def test_gpu(text: str, expected: spec.GPU) -> None:
    assert spec.parse_gpu(text) == expected
    assert task(f"image: x\nresources: {{gpu: '{text}'}}").resources.gpu == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu: 4", {"cpu": spec.CPU(count=Range(4, 4))}),
        ("cpu: x86", {"cpu": spec.CPU(arch="x86")}),
        ("cpu: '2..:ARM'", {"cpu": spec.CPU(arch="arm", count=Range(2, None))}),
        ("cpu: {min: 1}", {"cpu": spec.CPU(count=Range(1, None))}),
        ("cpu: {}", {"cpu": spec.CPU()}),
        ("memory: 16 Gb", {"memory": Range(16.0, 16.0)}),
        ("memory: 512..1 TB", {"memory": Range(512.0, 1024.0)}),
        ("memory: {min: 512MB, max: 1TB}", {"memory": Range(0.5, 1024.0)}),
        ("disk: 100GB", {"disk": Range(100.0, 100.0)}),
        ("disk: {size: 1TB..}", {"disk": Range(1024.0, None)}),
        ("disk: null", {"disk": Range(100.0, None)}),
        ("shm_size: 1.5", {"shm_size": 1.5}),
        ("gpu: {compute_capability: [7, 5]}", {"gpu": spec.GPU(compute_capability=(7, 5))}),
        ("gpu: {compute_capability: 8.0}", {"gpu": spec.GPU(compute_capability=(8, 0))}),
    ],
)
def test_resources(text: str, expected: dict[str, object]) -> None:
    resources = task(f"resources: {{{text}}}").resources
    assert {name: getattr(resources, name) for name in expected} == expected
    assert resources.explicit == ({text.partition(":")[0]} if "null" not in text else frozenset())


def test_resources_defaults_are_not_explicit() -> None:
    resources = task("").resources
    assert resources.explicit == frozenset()
    assert (resources.cpu.count, resources.memory, resources.disk) == (Range(2, None), Range(8, None), Range(100, None))
    assert resources.gpu is not None
    assert resources.gpu.count == Range(0, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (None, 300, 300)),
        ("max_duration: off", (None, 300, 300)),
        ("max_duration: false", (None, 300, 300)),
        ("max_duration: true", (None, 300, 300)),
        ("max_duration: 2h", (7200, 300, 300)),
        ("stop_duration: off", (None, None, 300)),
        ("stop_duration: true", (None, 300, 300)),
        ("stop_duration:", (None, 300, 300)),
        ("idle_duration: -1", (None, 300, None)),
        ("idle_duration: 1w", (None, 300, 604800)),
    ],
)
def test_durations(text: str, expected: tuple[int | None, ...]) -> None:
    loaded = task(text)
    assert (loaded.max_duration, loaded.stop_duration, loaded.idle_duration) == expected


def test_numbers_stay_as_they_are_written() -> None:
    loaded = task("python: 3.10\nenv: {A: 0123, B: 1_000, C: 12:30:45, D: 2026-11-23}")
    assert loaded.python == "3.10"
    assert [(item.name, item.value) for item in loaded.env] == [
        ("A", "0123"),
        ("B", "1_000"),
        ("C", "12:30:45"),
        ("D", "2026-11-23"),
    ]


def test_ports_that_yaml_takes_for_times() -> None:
    """YAML 1.1 reads 8080:22 as the number 484822 (base 60)."""
    assert task("ports: [8080:22]").ports == (spec.PortMapping(local_port=8080, container_port=22),)


def test_commands_are_never_touched() -> None:
    loaded = spec.load(DATA / "task-templates-stay.yml")
    assert isinstance(loaded, spec.TaskSpec)
    assert loaded.commands == ("echo \"{{ 7*7 }}\" '{% raw %}' ${{ run.args }} $${{ groups[9].nodes[9].X }}",)


def test_groups_add_up_and_are_named() -> None:
    loaded = spec.load(DATA / "task-groups.yml")
    assert isinstance(loaded, spec.TaskSpec)
    assert loaded.nodes == 3
    assert loaded.groups is not None
    assert [group.name for group in loaded.groups] == ["head", "1"]


def test_older_replica_groups() -> None:
    loaded = spec.load(DATA / "service-legacy-groups.yml")
    assert isinstance(loaded, spec.ServiceSpec)
    assert loaded.groups is not None
    assert [group.replicas for group in loaded.groups] == [Range(1, 1), Range(2, 2)]
    assert loaded.replicas == Range(3, 3)


def test_secrets_stay_out_of_repr() -> None:
    loaded = task("env: [TOKEN=hunter2]\nimage: x\nregistry_auth: {username: me, password: hunter2}")
    assert "hunter2" not in repr(loaded)


def test_kind_that_is_not_wanted() -> None:
    with pytest.raises(SpecError, match=r"^x.yml:1: this is a task file; a fleet file is wanted here$"):
        spec.loads("type: task\n", filename="x.yml", kind="fleet")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"type: fleet\nnodes: two\n")))
    with pytest.raises(SpecError, match=r"^<stdin>:2: 'nodes' must be"):
        spec.load("-")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"type: fleet\nname: \xff\n", ":2: the file is not UTF-8 text; save it as UTF-8"),
        (b"\xef\xbb\xbftype: fleet\n", ":1: the fleet has neither"),
        (b"type: fleet\nname: \x07\n", ":2: the character U+0007 is not allowed in YAML; remove it"),
        (b"[" * 100_000, ":1: the file is nested more than 64 levels deep"),
        (b"- " * 100_000, ":1: the file is nested more than 64 levels deep"),
        (b"type: " + b"x" * 17_000_000, ": the file is larger than 16 MiB"),
        (b"type: fleet\nnodes: " + b"9" * 5000, ":2: 'nodes' must be a number or a range"),
    ],
)
def test_hostile_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.yml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        spec.load(path)
    assert str(caught.value).startswith(f"{path}{message}")
    assert len(str(caught.value)) < 600


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no.yml: the file cannot be read: No such file or directory$"):
        spec.load(tmp_path / "no.yml")
    with pytest.raises(SpecError, match="the file cannot be read: Is a directory"):
        spec.load(tmp_path)
    with pytest.raises(SpecError, match="its name is not valid"):
        spec.load("a\0b")


@pytest.mark.parametrize("levels", [8, 30])
def test_alias_bombs(levels: int) -> None:
    lines = ["type: task", "env:", "  A0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"  A{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    with pytest.raises(SpecError, match=r"the aliases .* expand to far more than the file holds"):
        spec.loads("\n".join(lines))


def test_ten_thousand_hosts_visit_each_node_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the hosts cost twice the visits: nothing looks at all hosts for each host."""
    visits = 0
    original = nodes.entries

    def counted(node: nodes.MappingNode) -> object:
        nonlocal visits
        visits += 1 + len(node.value)
        return original(node)

    from lambdactl.spec import engine

    monkeypatch.setattr(engine, "entries", counted)

    def cost(hosts: int) -> int:
        nonlocal visits
        visits = 0
        lines = (f"    - {{hostname: h{n}, port: 22, internal_ip: 10.1.{n // 250}.{n % 250}}}" for n in range(hosts))
        text = "\n".join(["type: fleet", "ssh_config:", "  user: ubuntu", "  hosts:", *lines])
        loaded = spec.loads(text)
        assert isinstance(loaded, spec.FleetSpec)
        assert loaded.ssh_config is not None
        assert len(loaded.ssh_config.hosts) == hosts
        return visits

    assert cost(10_000) <= 4 * 10_000 + 10
    assert cost(3_000) - cost(2_000) == cost(2_000) - cost(1_000)


def test_options() -> None:
    assert spec.parse_env_item("A=b=c") == EnvVar("A", "b=c")
    assert spec.parse_env_item("A=") == EnvVar("A", "")
    assert spec.parse_env_item("A") == EnvVar("A", None)
    assert spec.parse_range("2..8") == Range(2, 8)
    assert spec.parse_memory("16GB..") == Range(16.0, None)
    assert spec.parse_size("512MB") == 0.5
    assert spec.parse_duration("off") is None
    assert spec.parse_duration(None, default=300) == 300
    assert spec.parse_duration(90) == 90


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spec.parse_env_item("a b=secret"), "'-e' must be NAME=value or NAME; 'a b' is not a variable's name"),
        (lambda: spec.parse_gpu("A:1:2", name="--gpu"), "'--gpu' gives the count twice in 'A:1:2'"),
        (lambda: spec.parse_duration("soon", name="--max-duration"), "'--max-duration' must be a number of seconds"),
        (lambda: spec.parse_range("..", name="--cpu"), "'--cpu' must have a bound on at least one side of '..'"),
        (lambda: spec.json_schema("volume"), "there is no schema for 'volume'; allowed: fleet, task,"),
    ],
)
def test_option_errors(call: Callable[[], object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert "secret" not in str(caught.value)


def test_environment_layers() -> None:
    env = spec.merge_env((EnvVar("A", "1"), EnvVar("B", None)), (EnvVar("A", "2"), EnvVar("C", "3")))
    assert spec.resolve_env(env, {"B": "b"}) == {"A": "2", "B": "b", "C": "3"}
    with pytest.raises(SpecError, match=r"the environment has no value for B; set it, or pass -e B="):
        spec.resolve_env(env, {})


def test_line_of_a_key() -> None:
    loaded = spec.load(ROOT / "examples" / "lambda-nccl-tests.dstack.yml")
    assert spec.line_in(loaded, "nodes") == 4
    assert spec.line_in(loaded, "groups") is None


KEYS = st.sampled_from(
    ["type", "name", "nodes", "ssh_config", "hosts", "env", "resources", "gpu", "commands", "groups", "x"]
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(spec.KINDS)
)
TREES = st.recursive(
    SCALARS, lambda tree: st.lists(tree, max_size=4) | st.dictionaries(KEYS, tree, max_size=5), max_leaves=20
)


def refused_or_loaded(text: str) -> None:
    try:
        spec.loads(text, filename="x.yml")
    except SpecError as error:
        message = str(error)
        assert message.startswith("x.yml:")
        assert message.isprintable()


@given(st.text())
def test_any_text(text: str) -> None:
    refused_or_loaded(text)


@given(st.sampled_from(spec.KINDS), st.text(alphabet="abctypen:-[]{}&*!|>'\"#%@,?<\n \t0.1"))
def test_any_yaml_like_text(kind: str, text: str) -> None:
    refused_or_loaded(f"type: {kind}\n{text}")


@given(st.sampled_from(spec.KINDS), st.dictionaries(KEYS, TREES, max_size=6))
def test_any_tree(kind: str, tree: dict[str, object]) -> None:
    import yaml

    refused_or_loaded(yaml.safe_dump({**tree, "type": kind}))


@given(st.binary())
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "x.yml"
    path.write_bytes(content)
    with pytest.raises(SpecError):
        spec.load(path)


@given(st.text(alphabet="0123456789.:,GBTMabxnvidiarmH- ", max_size=24))
def test_any_option(text: str) -> None:
    for parse in (spec.parse_gpu, spec.parse_range, spec.parse_memory, spec.parse_size, spec.parse_duration):
        with contextlib.suppress(SpecError):
            parse(text)  # type: ignore[operator]  # a table of functions of several kinds


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(["both", "min", "max", "exact"]))
def test_ranges_round_trip(low: int, more: int, sides: str) -> None:
    whole = {
        "both": Range(low, low + more),
        "min": Range(low, None),
        "max": Range(None, low),
        "exact": Range(low, low),
    }[sides]
    assert values.read_whole_range(str(whole)) == whole


@given(st.floats(0, 1e6, allow_nan=False).map(lambda size: round(size * 1024) / 1024))
def test_sizes_round_trip(size: float) -> None:
    assert values.read_size(spec.format_size(size)) == pytest.approx(size)
    assert values.read_size(f"{size:f}GB") == pytest.approx(size, abs=1e-6)


@given(st.integers(0, 10**9))
def test_durations_round_trip(seconds: int) -> None:
    assert values.read_duration(spec.format_duration(seconds)) == seconds
    assert spec.parse_duration(seconds) == seconds
