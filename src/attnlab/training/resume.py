"""What must not have changed when a run is resumed, and the messages if it has."""

import logging
from pathlib import Path
from typing import Any

from attnlab.config.schema import Config
from attnlab.data.loader import Data
from attnlab.errors import BadInput
from attnlab.runs.environment import stored_environment
from attnlab.runs.folder import RunFolder
from attnlab.runtime import distributed
from attnlab.training import checkpoint

log = logging.getLogger(__name__)


def check_same_data(then: str, data: Data, path: Path) -> None:
    """Errors: `BadInput` if the fingerprint of the data is not the one the run was trained on."""
    if then != data.fingerprint:
        raise BadInput(
            f"run folder {path}: was trained on data with fingerprint {then}, which is now "
            f"{data.fingerprint}; restore the data, name it differently (data.name=), or start in "
            "another folder (hydra.run.dir=)"
        )


def check_same_processes(state: dict[str, Any], path: Path) -> None:
    """Errors: `BadInput` if a checkpoint was made by another number of processes, because sums
    would be rounded differently from there on.
    """
    then, now = state.get("processes", 1), distributed.world_size()
    if then != now:
        start = f"torchrun --nproc-per-node={then} train.py" if then > 1 else "python train.py"
        raise BadInput(
            f"run folder {path}: was trained by {then} process(es), now there are {now}; "
            f"continue with {start}, or start in another folder"
        )


def take_best(state: dict[str, Any], folder: RunFolder) -> None:
    """Let the state to continue from name the evaluation that best.pt was saved at. It may be one
    that came after the checkpoint; where rounding has changed since, training may not find it
    again. Errors: `BadInput` if best.pt is lost, before training continues.
    """
    file = folder.checkpoints / "best.pt"
    if not state.get("best") and not file.exists():
        return
    try:
        best = checkpoint.load_best(folder.checkpoints)
    except BadInput as error:
        raise BadInput(f"{error}; move the run folder away to start from step 0") from None
    if best["step"] > state["step"]:
        about = ("model", "data", "processes")
        state["best"] = {k: v for k, v in best.items() if k not in about}


def other_masks(path: Path, cfg: Config) -> str:
    """What to say if a run was made in a way that draws other dropout masks: with another
    runtime.compile, or by another number of processes that micro-batches follow; else empty.
    """
    then, processes, made = stored_environment(path), distributed.world_size(), []
    if then.get("compile", cfg.runtime.compile) != cfg.runtime.compile:
        made.append(f"with runtime.compile={str(then['compile']).lower()}")
    if then.get("processes", processes) != processes and cfg.trainer.micro_batch_size is None:
        made.append(f"by {then['processes']} process(es), now there are {processes}")
    if not made:
        return ""
    return (
        f"{path}: was made {' and '.join(made)}, which draws other dropout masks; "
        "hydra.run.dir=<folder> makes another run"
    )


_ROUNDING = "no longer the same to the last bit"
_MASKS = "the dropout masks from here on are other ones"
# What another value in env.json means for a run that continues.
EFFECTS = {
    "torch": _ROUNDING,
    "torchvision": _ROUNDING,
    "numpy": "the order of the samples and generated sequences may differ",
    "device": _MASKS,
    "device_name": _ROUNDING,
    "threads": _ROUNDING,
    "compile": _MASKS,
    "source": "results may differ by more than rounding",
}


def with_history(env: dict[str, Any], path: Path) -> dict[str, Any]:
    """The environment and, under `before`, the different environments of earlier starts. Warns of
    everything that is another than at an earlier start and may change results.
    """
    then = stored_environment(path)
    if not then:
        return env
    before = then.pop("before", [])
    if any(then.get(key) != env[key] for key in env if key != "command"):
        before = [*before, then]
    if not before:
        return env
    for key, effect in EFFECTS.items():
        others = [start.get(key, env[key]) for start in before]  # earlier runs lack some
        if other := [value for value in others if value != env[key]]:
            verb = "began" if other[0] == others[0] else "went on"
            said = f"{path}: {verb} with {key} {other[0]}"
            log.warning("%s, continues with %s: %s", said, env[key], effect)
    return {**env, "before": before}
