"""Neural Attention beside the dot product: time and memory, alone and in whole training steps.

    attnlab benchmark case=released_d2 n=1024 json=rows.json
    attnlab benchmark n=256,512,1024,2048,4096,8192 plot=attention.png
    attnlab benchmark model=yes

Prints a Markdown table; every ratio is to torch's scaled_dot_product_attention (with model=yes, to
the dot_product arm) in the same process, sample by sample: median [quartiles].
"""

from dataclasses import asdict, dataclass
from inspect import signature
from json import dumps
from pathlib import Path

from attnlab.config.compose import compose_config, plain
from attnlab.config.messages import validate
from attnlab.errors import BadInput

DTYPES = ("float32", "bfloat16", "float16")
BODIES = {"lm": "wikitext103", "vit": "cifar100"}
ARMS = {
    "dot_product": ["model=dot_product"],
    "neural_d2": ["model=neural_d2"],
    "neural_d16": ["model=neural_d16"],
    "neural_full": ["model=neural_full"],
    "neural_d2, all layers": ["model=neural_d2", "model.neural_layers=all"],
}


@dataclass(frozen=True)
class Options:
    """Of attention alone: see `main`."""

    case: str
    backend: str
    n: str
    d: int
    batch: int
    heads: int
    full: bool
    dtype: str

    def sizes(self) -> list[int]:
        """The values of n. Errors: `BadInput`."""
        words = self.n.split(",")
        if not all(word.strip().isdecimal() and int(word) for word in words):
            raise BadInput(f"n={self.n}: must be whole numbers from 1")
        return [int(word) for word in words]

    def check(self, model: bool, plot: Path | None) -> None:
        """Errors: `BadInput` for values that cannot be, and for what model=yes would ignore."""
        for key in ("d", "batch", "heads"):
            if getattr(self, key) < 1:
                raise BadInput(f"{key}={getattr(self, key)}: must be at least 1")
        if self.dtype not in DTYPES:
            raise BadInput(f"dtype={self.dtype}: must be among {', '.join(DTYPES)}")
        defaults = signature(main).parameters
        typed = [k for k, v in asdict(self).items() if v != defaults[k].default]
        if model and (ignored := [*typed, *(["plot"] if plot else [])]):
            raise BadInput(f"{ignored[0]}=: has no effect on whole training steps (model=yes)")
        self.sizes()


def main(
    case: str = "all",
    backend: str = "all",
    n: str = "1024",
    d: int = 64,
    batch: int = 1,
    heads: int = 8,
    full: bool = False,
    dtype: str = "float32",
    model: bool = False,
    threads: int | None = None,
    device: str | None = None,
    json: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Measure what the command line asks for. case, backend, n: several by commas; d: head width;
    full: without the causal mask; model: whole training steps instead; json, plot: files for all
    rows and for a picture of time and memory over n.
    """
    options = Options(case, backend, n, d, batch, heads, full, dtype)
    options.check(model, plot)
    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise BadInput(f"plot={plot}: must end in .png, .svg or .pdf")
    for key, file in (("json", json), ("plot", plot)):
        if file is not None and not file.absolute().parent.is_dir():
            raise BadInput(f"{key}={file}: there is no folder {file.parent}")
    if threads is not None and threads < 1:
        raise BadInput(f"threads={threads}: must be at least 1")
    import torch

    from attnlab.benchmarks import attention as bench
    from attnlab.runtime.device import set_up

    if plot:
        try:
            from attnlab.report.figures import plot_benchmark
        except ModuleNotFoundError as error:
            raise BadInput(f"plot= needs {error.name}: pip install 'attnlab[report]'") from None
    torch.set_float32_matmul_precision("highest")  # whatever the environment says of TF32
    if threads is not None:
        torch.set_num_threads(threads)
    known = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if device is not None and device not in known:
        raise BadInput(f"device={device}: must be {' or '.join(known)} on this machine")
    where = torch.device(device or known[-1])
    if model:
        set_up(where)  # as training does
    rows = list(steps(where) if model else attention(bench, options, where))
    print_table(rows)
    if json:
        json.write_text(dumps(rows, indent=0) + "\n")
    if plot:
        plot_benchmark(rows, plot)


def attention(bench, options: Options, device):
    """Rows of attention alone."""
    import torch

    chosen = []
    for key, allowed in ("case", list(bench.CASES)), ("backend", bench.ALL_BACKENDS):
        said = getattr(options, key)
        chosen.append(list(allowed) if said == "all" else said.split(","))
        if unknown := sorted(set(chosen[-1]) - set(allowed)):
            raise BadInput(f"{key}={','.join(unknown)}: must be among {', '.join(allowed)}")
    sizes = (options.d, options.batch, options.heads, not options.full)
    shapes = [bench.Shape(n, *sizes, getattr(torch, options.dtype)) for n in options.sizes()]
    yield from bench.attention(shapes, *chosen, device)


def steps(device):
    """Rows of whole training steps, at the published sizes, one sample a step."""
    from attnlab.benchmarks.training_step import whole_steps

    for data in BODIES.values():
        arms = {}
        for name, overrides in ARMS.items():
            composed = compose_config([f"data={data}", "trainer.batch_size=1", *overrides])
            arms[name] = validate(plain(composed))
        yield from whole_steps(arms, device)


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
