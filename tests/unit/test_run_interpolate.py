"""Arguments, addresses and secrets in task files; the file of secrets; hosts that a task names."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lambdactl import spec
from lambdactl.errors import LambdactlError, SpecError
from lambdactl.fleet import Fleet
from lambdactl.provision.task_options import task_options
from lambdactl.run import interpolate, secrets
from lambdactl.run.pinning import pinned


def task(**fields: Any) -> spec.TaskSpec:
    text = yaml.safe_dump({"type": "task", "commands": ["true"], **fields})
    parsed = spec.loads(text, filename="t.yml")
    assert isinstance(parsed, spec.TaskSpec)
    return parsed


def command(text: str, *arguments: str) -> str:
    made = interpolate.with_args(task(commands=[text]), arguments)
    return interpolate.with_addresses(made.commands, [["10.0.0.1", "10.0.0.2"]])[0]


@pytest.mark.parametrize(
    ("text", "arguments", "wanted"),
    [
        ("python t.py ${{ run.args }}", ("--lr", "0.1"), "python t.py --lr 0.1"),
        ("echo ${{run.args}}", ("two words", "$HOME; rm", "it's"), "echo 'two words' '$HOME; rm' 'it'\"'\"'s'"),
        ("echo ${{ run.args }}.", (), "echo ."),
        ("echo $${{ run.args }} ${{ run.args }}", ("a",), "echo ${{ run.args }} a"),
        ("echo ${{ x }} $${{ x }} {{ 7*7 }} ${{ run.args", (), "echo ${{ x }} $${{ x }} {{ 7*7 }} ${{ run.args"),
        ("echo ${{ run.args }}", ("${{ run.args }} ${{ groups[0].nodes[0].X }}",), None),
        ("nc ${{ groups[0].nodes[0].IP_ADDRESS }} $${{ groups[0].nodes[0].IP_ADDRESS }}", (), None),
    ],
)
def test_commands(text: str, arguments: tuple[str, ...], wanted: str | None) -> None:
    if wanted is None:
        wanted = {True: "echo '${{ run.args }} ${{ groups[0].nodes[0].X }}'"}.get(
            bool(arguments), "nc 10.0.0.1 ${{ groups[0].nodes[0].IP_ADDRESS }}"
        )
    assert command(text, *arguments) == wanted


def test_arguments_without_a_place_and_secrets_in_commands_are_refused() -> None:
    with pytest.raises(SpecError, match=r"t.yml:1: arguments are given \(-x 'a b'\), but no command takes them"):
        command("true", "-x", "a b")
    with pytest.raises(SpecError, match=r"refers to secrets.token; .*'NAME=\$\{\{ secrets.token \}\}' under 'env'"):
        command("curl -H ${{ secrets.token }}")


def test_values_take_secrets_and_variables() -> None:
    known = {"hf": "s3cret ${{ secrets.other }}"}.get
    env = interpolate.env_values(task(env=["A=x-${{ secrets.hf }}", "B=${{ y }}", "C"]).env, known)
    assert [(item.name, item.value) for item in env] == [
        ("A", "x-s3cret ${{ secrets.other }}"),
        ("B", "${{ y }}"),
        ("C", None),
    ]
    assert interpolate.value("${{ env.USER_NAME }}", "'registry_auth'", secrets=known, env={"USER_NAME": "me"}) == "me"
    with pytest.raises(
        SpecError, match=r"'env' \(A\) refers to the secret gone, which is not set here; .*secret set gone"
    ):
        interpolate.env_values(task(env=["A=${{ secrets.gone }}"]).env, known)
    with pytest.raises(SpecError, match=r"'registry_auth' refers to env\.X, which 'env' does not have"):
        interpolate.value("${{ env.X }}", "'registry_auth'", secrets=known, env={})


def test_a_variable_without_a_value_is_told_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BARE", raising=False)
    known = {"hf": "s3cret"}.get
    given, around = (
        (spec.parse_env_item("A=mine"),),
        (spec.parse_env_item("A=fleet"), spec.parse_env_item("F=${{ secrets.hf }}")),
    )
    found = interpolate.environment(task(env=["A=file", "BARE"]), known, given=(*given, spec.EnvVar("BARE", "x")))
    assert found == {"A": "mine", "BARE": "x"}
    found = interpolate.environment(task(env=["A=file"]), known, around=around)
    assert found == {"A": "file", "F": "s3cret"}
    for env, what in (
        (["BARE"], "the environment has no value for BAR"),
        (["A=${{ secrets.gone }}"], r"'env' \(A\) refers to the secret gone"),
    ):
        with pytest.raises(SpecError, match=rf"^t\.yml:3: {what}"):
            interpolate.environment(task(env=env), known)
    with pytest.raises(SpecError, match=r"^the environment has no value for BAR"):  # its place is the command line
        interpolate.environment(task(), known, given=(spec.EnvVar("BARE", None),))
    registry = task(image="x", registry_auth={"username": "u", "password": "${{ env.GONE }}"})
    with pytest.raises(SpecError, match=r"^t\.yml:4: 'registry_auth' \(password\) refers to env\.GONE"):
        interpolate.login(registry, {}, known)


def test_a_secret_that_is_no_text_is_refused(home: Path) -> None:
    argv = [sys.executable, "-m", "lambdactl", "secret", "set", "binary"]
    done = subprocess.run(argv, input=b"\xff\xfe", capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (
        2, b"lambdactl: the value of binary must be UTF-8 text; encode other bytes, as base64 say.\n",
    )  # fmt: skip
    assert secrets.names() == []


def test_secrets_are_kept_privately(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "lambdactl", "secret", *words]
        return subprocess.run(argv, input=text, capture_output=True, text=True, timeout=60)

    assert run("set", "hf_token", text="canary-99\n").returncode == 0
    assert stat.S_IMODE(secrets.path().stat().st_mode) == 0o600
    assert secrets.get("hf_token") == "canary-99"
    listed = run("list")
    assert listed.stdout == "hf_token\n"
    monkeypatch.setenv("LAMBDACTL_SECRET_HF_TOKEN", "from-awx")
    assert secrets.get("hf_token") == "from-awx"
    for wrong, words in (
        (run("set", "no/name", text="x"), "a secret's name has"),
        (run("set", "empty", text=""), "must have 1 to"),
        (run("delete", "gone"), "no secret is named gone"),
    ):
        assert wrong.returncode == 2
        assert words in wrong.stderr
    secrets.path().chmod(0o644)
    monkeypatch.delenv("LAMBDACTL_SECRET_HF_TOKEN")
    with pytest.raises(LambdactlError, match="others may read"):
        secrets.get("hf_token")
    secrets.path().chmod(0o600)
    assert run("delete", "hf_token").returncode == 0
    assert secrets.names() == []
    secrets.path().write_text("{")
    with pytest.raises(LambdactlError, match="cannot be read"):
        secrets.names()


def test_hosts_that_a_task_names() -> None:
    text = {"type": "fleet", "name": "lab", "ssh_config": {"user": "u", "hosts": ["h0", "h1", "10.0.0.9"]}}
    parsed = spec.loads(yaml.safe_dump(text), kind="fleet")
    fleet = Fleet.from_spec(parsed, path=None)
    assert pinned(task(), fleet) is None
    for entry, host in (
        ("h1", "h1"),
        ("lab-0", "h0"),
        ("2", "10.0.0.9"),
        ({"hostname": "10.0.0.9"}, "10.0.0.9"),
        ({"fleet": "lab", "instance": 1}, "h1"),
        ({"fleet": "main/lab", "instance": 0}, "h0"),
    ):
        assert pinned(task(instances=[entry]), fleet) == {host}
    assert pinned(task(instances=["h0", "h1"]), fleet) == {"h0", "h1"}
    assert pinned(task(instances=[{"fleet": "other", "instance": 0}]), fleet) == set()
    with pytest.raises(SpecError, match=r"t.yml:\d: 'instances' names nope, which is no host of lab"):
        pinned(task(instances=["nope"]), fleet)


def test_arguments_of_the_playbook() -> None:
    for given, wanted in (("a 'b c'", ("a", "b c")), (["a", 1], ("a", "1")), ("", ())):
        assert task_options({"task_file": "t", "args": given}, bool).overrides.args == wanted
    for wrong in ("it's", {"a": 1}):
        with pytest.raises(SpecError, match="run_args"):
            task_options({"task_file": "t", "args": wrong}, bool)
