"""Figures; needs the `report` extra (matplotlib)."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot_benchmark(rows: list[dict], file: Path) -> None:
    """Time and memory of forward and backward over N, a line for each case by its fastest backend
    and the literal Algorithm 1 of released_d2, beside the dot product.
    """
    rows = [row for row in rows if row["pass"] == "forward_backward"]
    lines: dict[str, list[dict]] = {}
    for row in rows:
        if row["backend"] in ("sdpa", "cpp", "triton"):
            lines.setdefault(row["case"], []).append(row)
        elif row["case"] == "released_d2" and row["backend"] in (
            "algorithm_1",
            "eager",
            "chunked",
        ):
            lines.setdefault(f"released_d2, {row['backend']}", []).append(row)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name, points in lines.items():
        base = name == "dot_product"
        style = {"color": "black", "linewidth": 2.5, "zorder": 3} if base else {"linewidth": 1.3}
        dashes = "--" if "," in name else "-"
        for axis, key in zip(axes, ("ms", "peak_mib"), strict=True):
            n, y = [p["n"] for p in points], [p[key] for p in points]
            axis.plot(n, y, dashes, marker="o", markersize=3, label=name, **style)
    for axis, label in zip(axes, ("ms", "peak MiB above what was there"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="N, tokens", ylabel=label)
        sizes = sorted({row["n"] for row in rows})
        axis.set_xticks(sizes, [str(n) for n in sizes])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8)
    one = rows[0]
    figure.suptitle(
        f"Attention, forward and backward: B {one['batch']}, H {one['heads']}, D {one['d']}, "
        f"{one['dtype']}, {'causal' if one['causal'] else 'full'}\n{one['device']}, "
        f"{one['threads']} threads, torch {one['torch']}",
        fontsize=10,
    )
    figure.savefig(file, dpi=150)
    plt.close(figure)
