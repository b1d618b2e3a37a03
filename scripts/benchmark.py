"""Neural Attention beside the dot product: time and memory, alone and in whole training steps.

    python scripts/benchmark.py --case released_d2 --n 1024 --json rows.json
    python scripts/benchmark.py --n 256,512,1024,2048,4096,8192 --plot attention.png
    python scripts/benchmark.py --model

Prints a Markdown table; every ratio is to torch's scaled_dot_product_attention (or, with --model,
to the dot_product arm) in the same process, sample by sample: median [quartiles].
"""

import argparse
import json
from pathlib import Path

import torch

from attnlab.cli import exit_on_failure
from attnlab.config.compose import compose_config, plain
from attnlab.config.messages import validate
from attnlab.errors import BadInput
from attnlab.runtime.device import keep_freed_memory

BODIES = {"lm": "wikitext103", "vit": "cifar100"}
ARMS = {
    "dot_product": ["model=dot_product"],
    "neural_d2": ["model=neural_d2"],
    "neural_d16": ["model=neural_d16"],
    "neural_full": ["model=neural_full"],
    "neural_d2, all layers": ["model=neural_d2", "model.neural_layers=all"],
}


def main() -> None:
    """Measure what the command line asks for."""
    from attnlab.benchmarks import attention as bench

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", default=",".join(bench.CASES), help="default: all")
    parser.add_argument("--backend", default=",".join(bench.ALL_BACKENDS), help="default: all")
    parser.add_argument("--n", default="1024", help="tokens; several by commas")
    parser.add_argument("--d", type=int, default=64, help="head width")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--full", action="store_true", help="without the causal mask")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", action="store_true", help="whole training steps instead")
    parser.add_argument("--json", type=Path, help="file for all rows")
    parser.add_argument("--plot", type=Path, help="picture of time and memory over n")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.model and device.type == "cpu":
        keep_freed_memory()  # as training does
    rows = list(steps(bench, device) if options.model else attention(bench, options, device))
    print_table(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=0) + "\n")
    if options.plot:
        from attnlab.report.figures import plot_benchmark

        plot_benchmark(rows, options.plot)


def attention(bench, options, device):
    """Rows of attention alone."""
    chosen = []
    for key, allowed in ("case", list(bench.CASES)), ("backend", bench.ALL_BACKENDS):
        chosen.append(getattr(options, key).split(","))
        if unknown := sorted(set(chosen[-1]) - set(allowed)):
            raise BadInput(f"--{key} {','.join(unknown)}: must be among {', '.join(allowed)}")
    try:
        sizes = [int(n) for n in options.n.split(",")]
    except ValueError:
        raise BadInput(f"--n {options.n}: must be whole numbers") from None
    for n in sizes:
        dtype = getattr(torch, options.dtype)
        shape = bench.Shape(n, options.d, options.batch, options.heads, not options.full, dtype)
        yield from bench.attention(shape, *chosen, device)


def steps(bench, device):
    """Rows of whole training steps, at the published sizes, one sample a step."""
    for data in BODIES.values():
        arms = {}
        for name, overrides in ARMS.items():
            composed = compose_config([f"data={data}", "trainer.batch_size=1", *overrides])
            arms[name] = validate(plain(composed))
        yield from bench.whole_steps(arms, device)


def print_table(rows: list[dict]) -> None:
    """One line a case and backend; what never changes stands above the table."""
    first = rows[0]
    print(", ".join(f"{key} {first[key]}" for key in ("device", "threads", "torch", "python")))
    if "arm" in first:
        print("\n| body | arm | step ms | ratio to dot_product |\n|---|---|---|---|")
        for row in rows:
            print(f"| {row['body']} | {row['arm']} | {row['ms']:.0f} | {ratio(row)} |")
        return
    print(f"B {first['batch']}, H {first['heads']}, D {first['d']}, {first['dtype']}", end="")
    print(", causal\n" if first["causal"] else ", full\n")
    print("| N | case | backend | forward ms | ratio | forward + backward ms | ratio | peak MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for one, both in zip(rows[::2], rows[1::2], strict=True):
        times = f"{one['ms']:.2f} | {ratio(one)} | {both['ms']:.2f} | {ratio(both)}"
        print(f"| {one['n']} | {one['case']} | {one['backend']} | {times} | {both['peak_mib']} |")


def ratio(row: dict) -> str:
    """Median and quartiles."""
    low, high = row["ratio_quartiles"]
    return f"{row['ratio_to_sdpa']:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    with exit_on_failure():
        main()
