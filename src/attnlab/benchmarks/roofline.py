"""Time of the Triton kernels on a card that is not at hand: a lower bound from the instructions of
their compiled inner loops and from the bytes that they must move.

The kernels are compiled for the card and disassembled. Their first loop, over tiles that the
causal mask does not cut, takes nearly all of the time; its instructions are divided by the pairs
of a tile. Every instruction is charged to the unit that executes it, and the slowest unit decides.
The dot product is bounded in the same way, by the fewest instructions that it can have: no kernel
of it is compiled here. Real kernels of both reach a part of it.
"""

import re
from collections import Counter
from dataclasses import dataclass

from attnlab.benchmarks.ahead_of_time import compiled, machine_code
from attnlab.kernels.triton_backend import Case, specialize


@dataclass(frozen=True)
class Card:
    """arch: compute capability; tensor: FLOP a clock and multiprocessor in bf16, accumulated in
    fp32. fp32, alu: lanes of a multiprocessor for multiply-adds, and for comparisons and integers
    (CUDA C++ Programming Guide, throughput of native arithmetic instructions). GHz and GB/s are
    those of the data sheets' peaks.
    """

    arch: int
    multiprocessors: int
    ghz: float
    tensor: int
    fp32: int
    gb_per_s: int
    alu: int = 64


CARDS = {
    "RTX 4090": Card(89, 128, 2.52, 512, 128, 1008),
    "A100": Card(80, 108, 1.41, 2048, 64, 2039),
    "H100": Card(90, 132, 1.83, 4096, 128, 3350),
}
MUFU, LOADS, ISSUE = 16, 32, 128  # lanes a clock and multiprocessor, on all of them
FP32 = ("FFMA", "FADD", "FMUL", "IMAD", "HFMA2")
MEMORY = ("LD", "ST", "SHFL", "ATOM", "RED")
CONTROL = ("BRA", "NOP", "BAR", "WARPSYNC", "BSSY", "BSYNC", "DEPBAR", "WARPGROUP", "U", "R2U")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")

# The dot product, per pair: flash attention's instructions beside the products (FLOP per head
# width). Forward: scale and sum; maximum and half a conversion; one exponential. Backward: scale,
# difference, product; two half conversions; one exponential; five products.
DOT_PRODUCT = {
    "forward": ({"fp32": 2.0, "alu": 1.5, "mufu": 1.0}, 4),
    "backward": ({"fp32": 3.0, "alu": 1.0, "mufu": 1.0}, 10),
}


def unit(opcode: str) -> str:
    """The unit that executes an instruction: tensor, mufu, fp32, memory, control or alu."""
    if opcode.startswith(("HMMA", "HGMMA")):
        return "tensor"
    for name, prefixes in (("mufu", ("MUFU",)), ("fp32", FP32), ("memory", MEMORY)):
        if opcode.startswith(prefixes):
            return name
    return "control" if opcode.startswith(CONTROL) else "alu"


def per_pair(kernel: str, case: Case, arch: int) -> dict[str, float]:
    """Instructions of one thread per pair in the first loop, by unit, and `flop` of the tensor
    cores per pair.
    """
    ptx, _ = compiled(kernel, case, arch)
    case, launch = specialize(kernel, case)
    threads = 32 * launch["num_warps"]
    pairs = case.rows * case.cols / threads  # of a thread
    lines = machine_code(ptx, arch).splitlines()
    found = loops(lines)
    outer = [a for a in found if not any(inside(a, b) for b in found)]
    start, end = outer[0]
    inner = [loop for loop in found if inside(loop, outer[0])]
    total: Counter = Counter()
    for number in range(start, end + 1):
        if not (match := INSTRUCTION.search(lines[number])):
            continue
        opcode = match[1]
        times = 1.0
        for loop in inner:
            if loop[0] <= number <= loop[1]:
                times *= trips(lines[slice(*loop)], case.h * pairs)
        name = unit(opcode)
        total[name] += times
        total["flop"] += times * tensor_flop(opcode)
    return {
        name: value / pairs if name != "flop" else value * threads / (case.rows * case.cols)
        for name, value in total.items()
    }


def loops(lines: list[str]) -> list[tuple[int, int]]:
    """First and last line of every loop: from a label to a branch back to it."""
    labels = {line.rstrip(":"): i for i, line in enumerate(lines) if re.match(r"\.L_\w+:", line)}
    found = []
    for i, line in enumerate(lines):
        branch = re.search(r"BRA.*`\((\.L_\w+)\)", line)
        if branch and i - labels.get(branch[1], i) > 1:  # a kernel ends with a branch to itself
            found.append((labels[branch[1]], i))
    return sorted(found)


def inside(loop: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a loop lies in another one."""
    return loop != other and other[0] <= loop[0] and loop[1] <= other[1]


def trips(body: list[str], units: float) -> float:
    """How often the body of a loop over hidden units runs for one thread's `units` times pairs: a
    unit of a pair is one maximum in the scores, and one comparison in the gradients.
    """
    for opcode in ("FSETP", "FMNMX"):
        if count := sum(opcode in line for line in body):
            return max(1.0, units / count)
    return 1.0


def tensor_flop(opcode: str) -> float:
    """FLOP of a thread's share of a matrix instruction, HMMA.16816 or HGMMA.64xNx16."""
    if opcode.startswith("HMMA"):
        m, n, k = {"16816": (16, 8, 16), "1688": (16, 8, 8)}[opcode.split(".")[1]]
        return 2 * m * n * k / 32
    if opcode.startswith("HGMMA"):
        m, n, k = map(int, opcode.split(".")[1].split("x"))
        return 2 * m * n * k / 128
    return 0.0


def clocks(counts: dict[str, float], card: Card) -> tuple[float, str]:
    """Clocks of a multiprocessor per pair, and the unit that decides."""
    issued = sum(value for name, value in counts.items() if name != "flop")
    spent = {
        "tensor": counts.get("flop", 0) / card.tensor,
        "fp32": counts.get("fp32", 0) / card.fp32,
        "alu": counts.get("alu", 0) / card.alu,
        "mufu": counts.get("mufu", 0) / MUFU,
        "memory": counts.get("memory", 0) / LOADS,
        "issue": issued / ISSUE,
    }
    slowest = max(spent, key=spent.__getitem__)
    return spent[slowest], slowest


def dot_product(kernel: str, d: int, card: Card) -> tuple[float, str]:
    """As `clocks`, for the dot product of head width d."""
    counts, per_width = DOT_PRODUCT[kernel]
    return clocks({**counts, "flop": per_width * d}, card)


def bytes_moved(case: Case, n: int, backward: bool) -> int:
    """What one head must at least read and write once: values, output and their gradients in 16
    bits, tables of the hidden units and the softmax's sum in float32.
    """
    tables, values = 4 * n * (2 * case.h + 2), 2 * n * case.d
    return (2 if backward else 1) * tables + (5 if backward else 2) * values


def milliseconds(clocks_per_pair: float, moved: int, heads: int, n: int, card: Card) -> float:
    """Of so many causal heads of n tokens: the longer one of computing and moving."""
    pairs = heads * n * (n + 1) / 2
    compute = pairs * clocks_per_pair / (card.multiprocessors * card.ghz * 1e9)
    return 1000 * max(compute, heads * moved / (card.gb_per_s * 1e9))
