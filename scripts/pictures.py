"""The pictures of README and docs, made from the committed results:  python scripts/pictures.py.

    effects.png    the effect of every arm of the miniatures over the dot product, with intervals
    kernels.png    time of attention over the number of tokens, relative to the dot product's

Fonts are large: a phone shows the pictures 350 pixels wide.
"""

import json
from pathlib import Path

from attnlab.commands.arguments import main_with
from attnlab.errors import BadInput

KERNELS = {  # (case, backend) -> what the legend says, and how it is drawn
    ("released_d2", "algorithm_1"): ("Algorithm 1 as printed", {"color": "C3", "linestyle": "--"}),
    ("dot_product", "sdpa"): ("dot product (torch)", {"color": "black", "linewidth": 3}),
    ("released_d2", "cpp"): ("Neural Attention, d' = 2", {"color": "C0", "linewidth": 3}),
}


def main(results: Path = Path("results"), out: Path = Path("docs/pictures")) -> None:
    """Write the pictures into `out`."""
    if not results.is_dir():
        raise BadInput(f"results={results}: no such folder")
    try:
        import matplotlib.pyplot as plt

        from attnlab.report.collect import collect
        from attnlab.report.compare import comparisons
        from attnlab.report.tuning import tunings
    except ModuleNotFoundError as error:
        raise BadInput(f"pictures need {error.name}: pip install 'attnlab[report]'") from None
    out.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"font.size": 15, "axes.spines.top": False, "axes.spines.right": False})
    _, evidence = tunings(collect(results / "mini"))
    effects(plt, comparisons(evidence), out / "effects.png")
    kernels(plt, json.loads((results / "kernels" / "cpu-over-n.json").read_text()), out)


def effects(plt, found: list, file: Path) -> None:
    """One panel for each comparison: a row for each arm, its effect and interval."""
    tested = [(c, [(k, e) for k, e in c.effects.items() if e.sd is not None]) for c in found]
    shown = sorted((pair for pair in tested if pair[1]), key=lambda pair: -len(pair[1]))
    heights = [len(arms) + 1 for _, arms in shown]
    figure, axes = plt.subplots(
        len(shown), figsize=(7, 1.6 + 0.7 * sum(heights)), height_ratios=heights, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, (comparison, upwards) in zip(axes[:, 0], shown, strict=True):
        arms = upwards[::-1]
        for place, (_, effect) in enumerate(arms):
            reach = [[effect.mean - effect.low], [effect.high - effect.mean]]
            axis.errorbar(effect.mean, place, xerr=reach, fmt="o", color="C0", capsize=5, lw=2.5)
        axis.axvline(0, color="black", lw=1)
        axis.set_yticks(range(len(arms)), [label for label, _ in arms])
        axis.set_ylim(-0.6, len(arms) - 0.4)
        axis.margins(x=0.1)
        what = "% lower perplexity" if arms[0][1].unit == "%" else "points more accuracy"
        name = comparison.config["data.name"]
        seeds = " or ".join(map(str, sorted({effect.n for _, effect in arms})))
        axis.set_title(f"{name}, miniature, {seeds} seeds", fontsize=15, loc="left")
        axis.set_xlabel(f"{what} than the dot product")
    figure.savefig(file, dpi=130)
    plt.close(figure)


def kernels(plt, rows: list[dict], out: Path) -> None:
    """Forward and backward as a ratio to torch's dot product, over the number of tokens: pairs
    were measured right after each other, while absolute times wander on a shared machine.
    """
    figure, axis = plt.subplots(figsize=(7, 4.6), layout="constrained")
    for (case, backend), (label, style) in KERNELS.items():
        points = [
            (row["n"], row["ratio_to_sdpa"])
            for row in rows
            if (row["case"], row["backend"], row["pass"]) == (case, backend, "forward_backward")
        ]
        axis.plot(*zip(*points, strict=True), marker="o", label=label, **style)
    sizes = sorted({row["n"] for row in rows})
    axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="time / dot product")
    axis.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axis.set_yticks([0.3, 1, 3, 10], ["0.3", "1", "3", "10"])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.58))
    axis.set_title("attention on CPU, forward and backward", fontsize=15, loc="left")
    figure.savefig(out / "kernels.png", dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main_with(main)
