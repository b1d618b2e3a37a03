"""How a process is set up for its device."""

import pytest
import torch
from conftest import config

from attnlab.errors import BadInput
from attnlab.kernels import triton_backend
from attnlab.runtime.device import choose_device


def test_deterministic_cuda_does_not_fill_what_is_written_anyway(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    try:
        assert choose_device(config("runtime.device=cuda").runtime).type == "cuda"
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)


def test_tf32_is_refused_where_there_is_none_and_left_off_otherwise():
    cfg = config("runtime.device=cpu", "trainer.precision=tf32")
    with pytest.raises(BadInput, match=r"^trainer.precision=tf32: needs an NVIDIA GPU"):
        choose_device(cfg.runtime, cfg.trainer.precision)
    torch.set_float32_matmul_precision("high")
    choose_device(cfg.runtime, "fp32")
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton starts here")
def test_why_triton_cannot_start_is_one_line():
    """Without a driver; without a compiler or Python.h, which slim images lack, it is the same."""
    pytest.importorskip("triton")
    problem = triton_backend.driver_problem()
    assert problem.startswith("triton cannot start: ") and "\n" not in problem
