"""What a GPU is expected to need and to do, without one:  python scripts/model_gpu.py

Peak memory of every arm of tables 1, 3 and 4 at the published batch, checked on this CPU, and
bounds of the kernels' times on three cards, from their compiled instructions. Writes
results/gpu/model.md, where measured numbers stand beside them as soon as `make gpu` has found
some. Started again, it computes what is missing. 15 minutes on 2 cores.
"""

from pathlib import Path

from attnlab.commands.arguments import main_with


def main(results: Path = Path("results/gpu")) -> None:
    """Compute, and write the page."""
    from attnlab.benchmarks.gpu import model
    from attnlab.benchmarks.gpu.plan import Plan
    from attnlab.benchmarks.gpu.runner import fill, rows_of
    from attnlab.runs.files import write_atomic

    results.mkdir(parents=True, exist_ok=True)
    plan = Plan("cpu", results, results, smoke=False, program=print)
    fill("model", plan)
    rows = rows_of("model", plan)
    whole = {key: row for key, row in rows.items() if "error" not in row}
    failed = [f"- {key}: {row['error']}" for key, row in rows.items() if "error" in row]
    head = ["# Modelled without a GPU", "", "Written by `python scripts/model_gpu.py`.", ""]
    lines = [*head, *model.page(whole, plan), *failed]
    write_atomic(results / "model.md", "\n".join(lines) + "\n")
    print(f"page: {results / 'model.md'}")


if __name__ == "__main__":
    main_with(main)
