"""Random numbers as pure functions of their purpose, so that no state must survive a kill."""

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on all parts: different purposes get different streams."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def reseed(device: torch.device | None, *parts: int | str) -> None:
    """Seed torch's generators, of the CPU and of `device`, from `parts` (1.6 us on CPU)."""
    seed = derive_seed(*parts)
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        torch.cuda.manual_seed(seed)
