"""Neural Attention on CPU by our own C++ (folder cpp), compiled on first use and kept.

One library for each activation, named by a hash of sources, command and torch version, in
ATTNLAB_KERNELS (default: ~/.cache/attnlab). A library appears there whole or not at all, so any
number of processes may build at once.
"""

import functools
import hashlib
import logging
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from attnlab.functional import constant_in_graphs
from attnlab.runtime.leftovers import remove_old

log = logging.getLogger(__name__)

SOURCES = sorted((Path(__file__).parent / "cpp").iterdir())
ACTIVATIONS = {
    "relu": "ReLU",
    "gelu": "GELU",
    "silu": "SiLU",
    "tanh": "Tanh",
    "leaky_relu": "LeakyReLU",
}
MAX_WIDTH = 256  # widest hidden layer, and head
INSTRUCTIONS = {  # by what torch itself uses here; anything else is what the compiler starts from
    "AVX512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma",
    "AVX2": "-mavx2 -mfma",
}


def forward(a, c, mid_weight, mid_bias, out_weight, v, activation, causal):
    """See `ops`."""
    tensors = _contiguous(a, c, mid_weight, mid_bias, out_weight)
    out, lse = _library(activation).forward(*tensors, v.float(), causal)
    return out.to(v.dtype).contiguous(), lse


def backward(grad_out, a, c, mid_weight, mid_bias, out_weight, v, out, lse, activation, causal):
    """See `ops`."""
    *tensors, lse = _contiguous(a, c, mid_weight, mid_bias, out_weight, lse)
    da, dc, dv, weight, bias, last = _library(activation).backward(
        grad_out.float(), *tensors, v.float(), out.float(), lse, causal
    )
    dv = dv.to(v.dtype).contiguous()
    weight, bias, last = weight.sum(0), bias.sum(0), last.sum(0)  # over the batch
    if mid_weight is None:
        return da, dc, None, None, weight[:, 0], dv
    return da, dc, weight, bias, last, dv


def unsupported(a, c, mid_weight, mid_bias, out_weight, v, activation) -> str | None:
    """Why this backend cannot serve, in one line, or None."""
    if v.device.type != "cpu":
        return f"device {v.device.type}: cpp needs cpu"
    if a.dtype != torch.float32:
        return f"dtype {a.dtype}: cpp computes in float32"
    widest = max(a.shape[-1], out_weight.shape[-1], v.shape[-1])
    if widest > MAX_WIDTH:
        return (
            f"width {widest}: cpp takes hidden layers (with the unit that a padding mask adds) "
            f"and heads up to {MAX_WIDTH}"
        )
    return build_problem(activation)


@constant_in_graphs
def build_problem(activation: str) -> str | None:
    """`_build_once`, as a constant to torch.compile."""
    return _build_once(activation)


@functools.cache
def _build_once(activation: str) -> str | None:
    """Build and load what this activation needs; why that failed, in one line, or None."""
    try:
        _load(activation)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        first = next((line for line in lines if "error" in line), lines[0])
        return f"the C++ compiler failed: {first}"
    except OSError as error:
        return f"no C++ library: {error}"
    return None


def cache_folder() -> Path:
    """Where libraries are kept."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "attnlab"
    return Path(os.environ.get("ATTNLAB_KERNELS", default)).expanduser()


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]


def _namespace(activation: str) -> str:
    return f"attnlab_cpu_{activation}"


def _library(activation: str):
    if reason := _build_once(activation):
        raise RuntimeError(reason)
    return getattr(torch.ops, _namespace(activation))


def _load(activation: str) -> None:
    command = _command(activation)
    content = [p.read_bytes() for p in SOURCES] + [repr((command, torch.__version__)).encode()]
    name = f"{activation}-{hashlib.sha256(b''.join(content)).hexdigest()[:16]}.so"
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():
            _build(command, folder / name)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename == command[0]:
            raise  # no compiler
        log.warning(f"C++ kernels are built for this process only: {error}")
        with tempfile.TemporaryDirectory() as temporary:
            _build(command, Path(temporary) / name)
            return torch.ops.load_library(Path(temporary) / name)
    torch.ops.load_library(folder / name)


def _command(activation: str) -> list[str]:
    root = Path(torch.__file__).parent
    flags = "-std=c++20 -O3 -ffp-contract=fast -fopenmp -shared -fPIC"
    return [
        *os.environ.get("CXX", "c++").split(),
        *flags.split(),
        *INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), "").split(),
        f"-DACTIVATION={ACTIVATIONS[activation]}",
        f"-DNAMESPACE={_namespace(activation)}",
        f"-I{root / 'include'}",
        f"-I{root / 'include/torch/csrc/api/include'}",
        f"-L{root / 'lib'}",
        "-ltorch_cpu",
        "-lc10",
        *os.environ.get("CXXFLAGS", "").split(),
    ]


LONGEST_BUILD = 3600  # seconds


def _build(command: list[str], library: Path) -> None:
    """Compile beside the final place and move there in one step."""
    source = next(p for p in SOURCES if p.suffix == ".cpp")
    remove_old(library.parent, "building-*", LONGEST_BUILD)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="building-") as temporary:
        built = Path(temporary) / library.name
        log.info(f"compiling C++ attention kernels (once, about 20 s): {library}")
        arguments = [command[0], str(source), *command[1:], "-o", str(built)]
        subprocess.run(arguments, check=True, capture_output=True, text=True)
        built.replace(library)
