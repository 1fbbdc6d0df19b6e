"""`python`, `nvcc` and `docker` of a task file: what stands before its commands so that they find these tools.

dstack has a default image with all of them. Here the default image is the user's own choice (`LAMBDACTL_IMAGE`,
`LAMBDACTL_DOCKER_IMAGE`, see container.py); without one the commands run on the hosts, with the hosts' tools.
"""

from __future__ import annotations

from lambdactl.fleet.facts import NodeFacts
from lambdactl.run.container import DOCKER_IMAGE_VARIABLE, IMAGE_VARIABLE, image_of
from lambdactl.spec import TaskSpec

# A virtual environment of the run's own, by uv where it is (it can get any Python), else by that Python itself.
_PYTHON = """\
PATH=$PATH:$HOME/.local/bin:$HOME/.cargo/bin
lambdactl_venv=${{XDG_CACHE_HOME:-$HOME/.cache}}/lambdactl/venv-$DSTACK_RUN_ID-$DSTACK_NODE_RANK
mkdir -p "${{lambdactl_venv%/*}}" && trap 'rm -rf "$lambdactl_venv"' EXIT && if command -v uv >/dev/null; then
  uv venv --quiet --seed --python {version} "$lambdactl_venv"
elif command -v python{version} >/dev/null; then
  python{version} -m venv "$lambdactl_venv"
else
  echo "there is neither python{version} nor uv, which could get it, here; name an image that has one" >&2; false
fi && . "$lambdactl_venv/bin/activate\""""
_NVCC = 'PATH=$PATH:/usr/local/cuda/bin; command -v nvcc >/dev/null || { echo "nvcc was not found" >&2; exit 127; }'
# dstack's image for Docker starts the engine by this command; on a host it runs already.
_DOCKER = """\
if [ -n "$BASH_VERSION" ]; then eval 'start-dockerd() { docker version >/dev/null; }'; fi
docker version >/dev/null || {
  echo "docker: true: $(id -un) may not use Docker here; add it to the group docker" >&2; exit 1
}"""


def prelude(task: TaskSpec) -> list[str]:
    """Commands that go before the task's own."""
    if task.image or task.entrypoint:
        return []
    found = [_PYTHON.format(version=task.python)] if task.python else []
    found += [_NVCC] if task.nvcc else []
    return found + ([_DOCKER] if task.docker and image_of(task) is None else [])


def tools_reason(task: TaskSpec, facts: NodeFacts) -> str | None:
    """Why a host lacks what the file asks for, with the remedy; None where it has it, or a container has."""
    tools = facts.raw.get("tools")
    if image_of(task) is not None or not isinstance(tools, dict):
        return None
    if task.python and not tools.get("uv") and task.python not in (tools.get("pythons") or ()):
        if task.python in (tools.get("pythons_without_venv") or ()):
            return (
                f"has Python {task.python} without its module venv, and no uv; install one of them there"
                f" (python{task.python}-venv on Debian and Ubuntu), or name an image (image, or {IMAGE_VARIABLE})"
            )
        return (
            f"has no Python {task.python} and no uv to get it; install one of them there, or name an image"
            f" (image, or {IMAGE_VARIABLE})"
        )
    if task.nvcc and not tools.get("nvcc"):
        return f"has no nvcc; install CUDA's compiler there, or name an image that has it (image, or {IMAGE_VARIABLE})"
    docker = any(engine.engine == "docker" and engine.problem is None for engine in facts.container_engines)
    if task.docker and not docker:
        return f"has no Docker that answers, which 'docker: true' needs (or an image in {DOCKER_IMAGE_VARIABLE})"
    return None
