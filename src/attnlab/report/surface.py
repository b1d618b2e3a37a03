"""Figure 1 of the paper: the score of a query with itself over the plane, q = k = (x, y)."""

from dataclasses import dataclass

from attnlab.errors import BadInput
from attnlab.report.collect import Run
from attnlab.report.compare import Arm, Comparison

REACH = 3.0  # the plane from -3 to 3 on both axes; the paper does not give its own
POINTS = 49  # on an axis


@dataclass
class Surface:
    """Scores over the grid: axis (POINTS), dot and neural (POINTS x POINTS, rows are y)."""

    axis: list[float]
    dot: list[list[float]]
    neural: list[list[float]]
    label: str


def has_surface(comparison: Comparison) -> bool:
    """Whether a finished run projects queries and keys to two dimensions."""
    return bool(_candidates(comparison))


def surface(comparison: Comparison) -> Surface:
    """The score network of a run with `has_surface`, in its first neural layer, beside the dot
    product.

    Of several runs, the first arm's lowest seed whose network is not dead at the end. Errors:
    `BadInput` if its best checkpoint is missing or damaged.
    """
    label, run = chosen(comparison)
    axis = [REACH * (2 * i / (POINTS - 1) - 1) for i in range(POINTS)]
    return Surface(
        axis=axis,
        dot=[[x * x + y * y for x in axis] for y in axis],
        neural=_neural(run, axis),
        label=label,
    )


def chosen(comparison: Comparison) -> tuple[str, Run]:
    """The run whose network is shown, with arm, seed and layer; see `surface`."""
    candidates = _candidates(comparison)
    arm, run = min(candidates, key=lambda found: _dead(found[1]))  # min keeps the first of equals
    return f"{arm.label}, seed {run.config['seed']}, layer {_layer(run)}", run


def _candidates(comparison: Comparison) -> list[tuple[Arm, Run]]:
    if comparison.config["arch.body"] == "seq2seq":  # three networks, where the figure has one
        return []
    arms = [arm for arm in comparison.arms if arm.own.get("model.d_prime") == 2]
    return [(arm, run) for arm in arms for run in arm.counted.values()]


def _layer(run: Run) -> int:
    return min(run.config["model.neural_layers"])


def _dead(run: Run) -> bool:
    key = f"attention/{_layer(run)}/dead_scorer"
    return next((row[key] == 1 for row in reversed(run.rows) if key in row), False)


def _neural(run: Run, axis: list[float]) -> list[list[float]]:
    """Unscaled scores (eqs 7-9) of q' = k' = (x, y); of the first head if each has its own."""
    import torch  # seconds to import, and only this figure needs it

    from attnlab.models.attention.neural import ScoreNetwork
    from attnlab.training.checkpoint import load_best

    prefix = f"blocks.{_layer(run)}.attention.mechanism.score_network."
    model = load_best(run.folder / "checkpoints")["model"]
    state = {key.removeprefix(prefix): v for key, v in model.items() if key.startswith(prefix)}
    widths = [4, *run.config["model.hidden"], 1]
    try:
        heads = len(state["0.weight"])
        network = ScoreNetwork(heads, widths, run.config["model.activation"])
        network.load_state_dict(state)
    except (KeyError, RuntimeError):  # torch says RuntimeError for keys and shapes
        raise BadInput(f"{run.folder}: best.pt does not fit its config.yaml") from None
    x = torch.tensor(axis)
    grid = torch.stack(torch.meshgrid(x, x, indexing="xy"), dim=-1).reshape(-1, 1, 1, 2)
    points = grid.expand(-1, heads, -1, -1)  # every point is a sequence of its own
    with torch.no_grad():
        return network(points, points)[:, 0, 0, 0].view(POINTS, POINTS).tolist()
