"""Compile the Triton kernels ahead of time, without a GPU, and print what ptxas says of them.

    python scripts/compile_triton.py [archs=89,90] [cases=h=2,h=64]

The cases have bfloat16 values of width 64, a causal mask and ReLU.
"""

import re
import subprocess
import tempfile
from pathlib import Path

from attnlab.commands.arguments import main_with
from attnlab.errors import BadInput

CASES = {  # h, h2 (1 with one hidden layer), whether there are two hidden layers
    "h=2": (2, 1, False),
    "released_d2": (2, 1, True),
    "h=16": (16, 1, False),
    "released_d16": (16, 8, True),
    "h=64": (64, 1, False),
}
HALF = ("v", "out", "grad_out", "grad_v")
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
    types = dict.fromkeys(names, "*fp32") | dict.fromkeys(HALF, "*bf16")
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
    import triton

    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        name = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
        command = [ptxas, "-v", f"--gpu-name={name}", file, "-o", file.with_suffix(".cubin")]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    numbers = (r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads")
    return [re.search(pattern, log)[1] for pattern in numbers]


def main(archs: str = "89,90", cases: str = ",".join(CASES)) -> None:
    """Print the table."""
    from attnlab.kernels.triton_backend import INTERPRETED, KERNELS, Case

    if INTERPRETED:
        raise BadInput("TRITON_INTERPRET is set: nothing is compiled in this process")
    if unknown := set(cases.split(",")) - set(CASES):
        raise BadInput(f"cases={','.join(unknown)}: must be among {', '.join(CASES)}")
    print("| kernel | case | arch | registers | spill stores | spill loads | shared memory |")
    print("|---|---|---|---|---|---|---|")
    for name in cases.split(","):
        h, h2, two = CASES[name]
        for kernel in KERNELS:
            for arch in map(int, archs.split(",")):
                ptx, shared = compiled(kernel, Case(h, h2, two, "relu", True, 64, True), arch)
                numbers = " | ".join(resources(ptx, arch))
                print(f"| {kernel} | {name} | sm_{arch} | {numbers} | {shared} |", flush=True)


if __name__ == "__main__":
    main_with(main)
