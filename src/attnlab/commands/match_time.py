"""Steps that train one arm for as many seconds as another:  attnlab match_time run=<> arm=<>.

This gives the time-matched baseline of a comparison. `run` is a finished run of the arm whose
training time is matched. `arm` is a finished run, short if you like, of the arm that gets the same
time; sizes must agree. Both have to be measured on the same machine with nothing else running.
"""

from pathlib import Path

from attnlab.config.schema import PER_ARM, PLACE
from attnlab.errors import BadInput
from attnlab.report.collect import Run, read

SAME = ("device_name", "threads", "torch")  # of env.json
# Of the configuration: what else than the arm makes a step longer, beside all of arch and data.
OPTIONS = (
    "trainer.batch_size",
    "trainer.micro_batch_size",
    "trainer.precision",
    "runtime.compile",
)


def main(run: Path, arm: Path) -> None:
    """Print both step times and the override."""
    matched, given = _measured(run, "run"), _measured(arm, "arm")
    for key in SAME:
        if matched.env.get(key) != given.env.get(key):
            raise BadInput(
                f"arm={arm}: {key} is {given.env.get(key)}, and {matched.env.get(key)} in {run}; "
                "step times of different machines cannot be compared"
            )
    keys = matched.config.keys() | given.config.keys()
    sizes = {k for k in keys if k.startswith(("arch.", "data."))} - {PLACE, *PER_ARM}
    for key in (*sorted(sizes), *OPTIONS):
        theirs, ours = (run.config.get(key) for run in (matched, given))
        if theirs != ours:
            raise BadInput(f"arm={arm}: {key} is {ours}, and {theirs} in {run}; must be the same")
    steps = matched.result["steps"]
    theirs, ours = (r.result["step_ms_median"] for r in (matched, given))
    print(f"{matched.config['model.name']}: {steps} steps of {theirs:.1f} ms (median)")
    print(f"{given.config['model.name']}: {ours:.1f} ms a step (median)")
    print(f"trainer.max_steps={max(1, round(steps * theirs / ours))}")


def _measured(folder: Path, key: str) -> Run:
    """A finished run whose steps were timed."""
    found = read(folder)
    if found.status != "finished":
        raise BadInput(f"{key}={folder}: is {found.status}; must be a finished run")
    if not found.result.get("step_ms_median"):
        raise BadInput(f"{key}={folder}: has no step time: too few steps, or speeds=no in collect")
    return found
