"""Compile the Triton kernels ahead of time, without a GPU, and print what ptxas says of them.

    python scripts/compile_triton.py [archs=89,90] [cases=h=2,h=64]

The cases have bfloat16 values of width 64, a causal mask and ReLU, unless their name is that of
another activation or mechanism.
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


def main(archs: str = "89,90", cases: str = ",".join(CASES)) -> None:
    """Print the table."""
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
                ptx, shared = compiled(kernel, Case(h, h2, two, act, True, 64, True), arch)
                numbers = " | ".join(resources(ptx, arch))
                print(f"| {kernel} | {name} | sm_{arch} | {numbers} | {shared} |", flush=True)


if __name__ == "__main__":
    main_with(main)
