"""The build of the C++ kernels: at once, without a compiler, for other processors."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

UNOPTIMISED = {"CXXFLAGS": "-O0"}  # builds in half the time
SMOKE = ("scale=smoke", "model.backend=auto", "trainer.max_steps=2")


def test_two_processes_build_at_once(start, tmp_path):
    runs = [
        start(*SMOKE, f"seed={seed}", ATTNLAB_KERNELS=str(tmp_path / "kernels"), **UNOPTIMISED)
        for seed in range(2)
    ]
    for process in runs:
        _, err = process.communicate()
        assert process.returncode == 0, err
    (library,) = (tmp_path / "kernels").iterdir()
    assert library.suffix == ".so"


@pytest.mark.parametrize(
    "environment,said",
    [
        ({"CXX": "false"}, "chunked backend: cpp: the C++ compiler failed"),
        ({"CXX": "no-such-compiler"}, "chunked backend: cpp: no C++ library"),
        ({"ATTNLAB_KERNELS": "/dev/null/x"}, "built for this process only"),
    ],
    ids=["broken compiler", "no compiler", "unwritable cache"],
)
def test_trains_without_what_the_build_needs(environment, said, train, tmp_path):
    code, _, err = train(
        *SMOKE, **{"ATTNLAB_KERNELS": str(tmp_path / "kernels"), **UNOPTIMISED, **environment}
    )
    lines = [line for line in err.splitlines() if "kernels" in line or "backend" in line]
    assert code == 0 and len([line for line in lines if said in line]) == 1, err


def test_other_instruction_sets():
    """Values and all gradients again in processes whose torch is told of older processors."""
    here = torch.backends.cpu.get_cpu_capability().lower()
    tests = ("tests/test_kernels.py", "-k", "half_precision_network and cpp")
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *tests],
            env={**os.environ, **UNOPTIMISED, "ATEN_CPU_CAPABILITY": capability},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for capability in {"avx2", "default"} - {here}
    ]
    for child in children:
        out, _ = child.communicate()
        assert child.returncode == 0 and "2 passed" in out, out
