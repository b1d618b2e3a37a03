"""Compile the Triton kernels ahead of time, without a GPU, and print what ptxas says of them.

    python scripts/compile_triton.py [archs=89,90] [cases=h=2] [fp32=yes] [width=96] [causal=no]

The cases have ReLU unless their name is that of another activation or mechanism.
"""

from attnlab.commands.arguments import main_with
from attnlab.errors import BadInput

CASES = {  # h, h2 (1 with one hidden layer), whether there are two hidden layers, activation
    "h=2": (2, 1, False, "relu"),
    "released_d2": (2, 1, True, "relu"),
    "h=16": (16, 1, False, "relu"),
    "released_d16": (16, 8, True, "relu"),
    "h=64": (64, 1, False, "relu"),
    "gelu": (5, 1, False, "gelu"),
    "additive": (64, 1, False, "tanh"),
}


def main(
    archs: str = "89,90",
    cases: str = ",".join(CASES),
    fp32: bool = False,
    width: int = 64,
    causal: bool = True,
) -> None:
    """Print the table. fp32: not bfloat16, width: of one head; both of the values."""
    from attnlab.benchmarks.ahead_of_time import compiled, resources
    from attnlab.kernels.triton_backend import INTERPRETED, KERNELS, Case

    if INTERPRETED:
        raise BadInput("TRITON_INTERPRET is set: nothing is compiled in this process")
    if unknown := set(cases.split(",")) - set(CASES):
        raise BadInput(f"cases={','.join(unknown)}: must be among {', '.join(CASES)}")
    if wrong := [arch for arch in archs.split(",") if not arch.isdecimal()]:
        raise BadInput(f"archs={archs}: must be numbers such as 90, not {wrong[0]!r}")
    print("| kernel | case | arch | registers | spill stores | spill loads | shared memory |")
    print("|---|---|---|---|---|---|---|")
    for name in cases.split(","):
        h, h2, two, act = CASES[name]
        for kernel in KERNELS:
            for arch in map(int, archs.split(",")):
                case = Case(h, h2, two, act, causal, width, not fp32)
                ptx, shared = compiled(kernel, case, arch)
                numbers = " | ".join(resources(ptx, arch))
                print(f"| {kernel} | {name} | sm_{arch} | {numbers} | {shared} |", flush=True)


if __name__ == "__main__":
    main_with(main)
