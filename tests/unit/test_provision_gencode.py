"""Code generation flags from compute capabilities."""

from __future__ import annotations

import pytest

from lambdactl.provision.gencode import gencode


@pytest.mark.parametrize(
    ("capabilities", "nvcc", "flags"),
    [
        (["8.0"], "11.0", "-gencode=arch=compute_80,code=sm_80"),
        (["9.0"], "11.8", "-gencode=arch=compute_90,code=sm_90"),
        (["10.0"], "12.8", "-gencode=arch=compute_100,code=sm_100"),
        (["10.3"], "12.9", "-gencode=arch=compute_103,code=sm_103"),
        (["12.0"], "13.0", "-gencode=arch=compute_120,code=sm_120"),
        (["9.0", "10.0", "9.0"], "13.0", "-gencode=arch=compute_90,code=sm_90 -gencode=arch=compute_100,code=sm_100"),
        (["7.0"], "12.8", "-gencode=arch=compute_70,code=sm_70"),
        ([], "12.8", ""),
    ],
)
def test_flags(capabilities: list[str], nvcc: str, flags: str) -> None:
    assert gencode(capabilities, nvcc) == flags


@pytest.mark.parametrize(
    ("capability", "nvcc", "said"),
    [
        ("10.0", "12.6", "nvcc 12.6 cannot compile for compute capability 10.0, which needs CUDA 12.8 or newer."),
        ("10.3", "12.8", "needs CUDA 12.9 or newer"),
        ("9.0", "11.7", "needs CUDA 11.8 or newer"),
        ("7.0", "13.0", "no longer compiles for compute capability 7.0; CUDA before 13.0 does"),
        ("99.0", "13.0", "unknown to this release"),
        ("N/A", "13.0", "is not a compute capability"),
        ("9.0", "", "is not a CUDA release"),
    ],
)
def test_refusals_are_one_sentence_and_a_remedy(capability: str, nvcc: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"Remedy: .*\.$") as caught:
        gencode([capability], nvcc)
    assert said in str(caught.value)
