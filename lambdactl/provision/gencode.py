"""Code generation flags of the NCCL tests: only for the GPUs that are there, which cuts the build time several-fold.

Which CUDA release first knew an architecture: CUDA Toolkit release notes, and the table in the nvcc documentation
(https://docs.nvidia.com/cuda/cuda-compiler-driver-nvcc/#gpu-feature-list).
"""

from __future__ import annotations

from collections.abc import Iterable

# compute capability -> (first CUDA release that compiles for it, first that no longer does)
_SUPPORT: dict[str, tuple[tuple[int, int], tuple[int, int] | None]] = {
    "6.0": ((8, 0), (13, 0)),
    "6.1": ((8, 0), (13, 0)),
    "7.0": ((9, 0), (13, 0)),
    "7.5": ((10, 0), None),
    "8.0": ((11, 0), None),
    "8.6": ((11, 1), None),
    "8.7": ((11, 4), None),
    "8.9": ((11, 8), None),
    "9.0": ((11, 8), None),
    "10.0": ((12, 8), None),
    "10.3": ((12, 9), None),
    "11.0": ((13, 0), None),
    "12.0": ((12, 8), None),
    "12.1": ((12, 9), None),
}


def gencode(capabilities: Iterable[str], nvcc: str) -> str:
    """The value of NVCC_GENCODE for these GPUs.

    Args:
        capabilities: compute capabilities as nvidia-smi prints them ("9.0", "10.0").
        nvcc: the compiler's release ("12.8").

    Raises:
        ValueError: one sentence, when this nvcc cannot compile for one of the GPUs, or the GPU is unknown.
    """
    release = _parse(nvcc, "CUDA release")
    wanted = sorted(set(capabilities), key=lambda capability: _parse(capability, "compute capability"))
    for capability in wanted:
        _check(capability, release, nvcc)
    return " ".join(
        f"-gencode=arch=compute_{number},code=sm_{number}" for number in (c.replace(".", "") for c in wanted)
    )


def _check(capability: str, release: tuple[int, int], nvcc: str) -> None:
    if capability not in _SUPPORT:
        raise ValueError(
            f"Compute capability {capability} is unknown to this release of lambdactl. "
            "Remedy: set nccl_tests_gencode to the flags that nvcc needs."
        )
    first, gone = _SUPPORT[capability]
    if release < first:
        raise ValueError(
            f"nvcc {nvcc} cannot compile for compute capability {capability}, which needs CUDA {_text(first)} or newer."
            " Remedy: install a newer CUDA toolkit beside it and set nccl_tests_cuda_home to it."
        )
    if gone is not None and release >= gone:
        raise ValueError(
            f"nvcc {nvcc} no longer compiles for compute capability {capability}; CUDA before {_text(gone)} does. "
            "Remedy: install an older CUDA toolkit beside it and set nccl_tests_cuda_home to it."
        )


def _parse(text: str, what: str) -> tuple[int, int]:
    parts = text.split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
        raise ValueError(
            f"'{text}' is not a {what} such as 12.8. Remedy: look at the output of nvcc --version and nvidia-smi."
        )
    return int(parts[0]), int(parts[1])


def _text(release: tuple[int, int]) -> str:
    return f"{release[0]}.{release[1]}"
