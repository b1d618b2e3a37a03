"""How a process is set up for its device."""

import torch
from conftest import config

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
