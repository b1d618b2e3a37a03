"""Floating-point operations of a training step, and their rate as a share of the peak."""

import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from attnlab.config.mechanisms import Mechanism
from attnlab.config.schema import Body, Config
from attnlab.data.loader import Data
from attnlab.models.transformer import Transformer
from attnlab.runtime import distributed

# FLOP/s of dense matrix products by trainer.precision, from the vendor's data sheets; 16 bits are
# accumulated in fp32. By the name that torch gives the device.
A100 = {"fp32": 19.5e12, "tf32": 156e12, "bf16": 312e12, "fp16": 312e12}
H100 = {"fp32": 67e12, "tf32": 494.5e12, "bf16": 989e12, "fp16": 989e12}
H100_PCIE = {"fp32": 51e12, "tf32": 378e12, "bf16": 756e12, "fp16": 756e12}
RTX_4090 = {"fp32": 82.6e12, "tf32": 82.6e12, "bf16": 165.2e12, "fp16": 165.2e12}
PEAK = {
    "NVIDIA A100-SXM4-40GB": A100,
    "NVIDIA A100-SXM4-80GB": A100,
    "NVIDIA A100-PCIE-40GB": A100,
    "NVIDIA A100 80GB PCIe": A100,
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA H100 PCIe": H100_PCIE,
    "NVIDIA H200": H100,
    "NVIDIA GeForce RTX 4090": RTX_4090,
}


def arithmetic(
    cfg: Config, data: Data, step_ms: float | None, device_name: str
) -> dict[str, float]:
    """flops_per_step, and mfu (model FLOPs utilization, arXiv 2204.02311, appendix B): its rate
    as a share of the peak of all devices. mfu only on a device of PEAK, and where steps were timed
    (step_ms: median time of one). Nothing for translation.
    """
    if cfg.data.kind == "translation":
        return {}  # each batch has other lengths
    found: dict[str, Any] = {
        "flops_per_step": flops_per_step(
            cfg.arch, cfg.model, cfg.trainer.batch_size, **data.shape(cfg.arch)
        )
    }
    if step_ms and device_name in PEAK:
        peak = PEAK[device_name][cfg.trainer.precision] * distributed.world_size()
        found["mfu"] = round(found["flops_per_step"] / (step_ms / 1000) / peak, 4)
    return found


def flops_per_step(
    arch: Body, model: Mechanism, batch: int, *, inputs: int, outputs: int, tokens: int
) -> int:
    """Operations of the matrix products in forward and backward of a batch of so many samples, two
    for each multiply-add; of the reference, so the same on every device and backend.

    Sizes as for `Transformer`. Counted on meta tensors. Causal attention counts as full attention;
    recomputation inside kernels and elementwise operations do not count.
    """
    if hasattr(model, "backend"):
        model = model.model_copy(update={"backend": "eager"})
    with torch.device("meta"):
        counted = Transformer(arch, model, inputs, outputs, tokens).eval()
        if counted.vision:
            side = arch.patch_size * math.isqrt(tokens - 1)  # one token is the class's
            x = torch.empty(batch, 3, side, side)
        else:
            x = torch.empty(batch, tokens, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            counted(x).sum().backward()
    return counter.get_total_flops()
