"""The Triton kernels compiled ahead of time, without a GPU: PTX, machine code, registers."""

import re
import subprocess
import tempfile
from pathlib import Path

LIKE_V = ("v", "out", "grad_out", "grad_v")  # of the dtype of the values
INTEGERS = ("heads", "n", "m")


def compiled(kernel: str, case, arch: int) -> tuple[str, int]:
    """PTX and bytes of shared memory of one kernel for a `triton_backend.Case`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from attnlab.kernels.triton_backend import KERNELS, specialize

    case, launch = specialize(kernel, case)
    constants = {"C": case, "PAIRS": case.two or not case.homogeneous}
    names = KERNELS[kernel].arg_names
    types = dict.fromkeys(names, "*fp32")
    types |= dict.fromkeys(LIKE_V, "*bf16") if case.half else {}
    types |= dict.fromkeys(INTEGERS, "i32") | dict.fromkeys(constants, "constexpr")
    aligned = [i for i, k in enumerate(names) if k != "heads" and k not in constants]
    source = ASTSource(
        fn=KERNELS[kernel],
        signature={name: types[name] for name in names},
        constexprs={k: v for k, v in constants.items() if k in names},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch)
    return built.asm["ptx"], built.metadata.shared


def resources(ptx: str, arch: int) -> list[str]:
    """Registers, bytes of spill stores and bytes of spill loads, by Triton's own ptxas."""
    log, _ = assembled(ptx, arch)
    numbers = (r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads")
    return [re.search(pattern, log)[1] for pattern in numbers]


def machine_code(ptx: str, arch: int) -> str:
    """The instructions (SASS), with labels, by Triton's own nvdisasm."""
    return assembled(ptx, arch)[1]


def assembled(ptx: str, arch: int) -> tuple[str, str]:
    """What ptxas says, and the disassembly."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        cubin = file.with_suffix(".cubin")
        file.write_text(ptx)
        name = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
        ptxas = "ptxas-blackwell" if arch >= 100 else "ptxas"  # as Triton chooses
        command = [tools / ptxas, "-v", f"--gpu-name={name}", file, "-o", cubin]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        command = [tools / "nvdisasm", "-c", cubin]
        code = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return log, code
