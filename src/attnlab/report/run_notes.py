"""What a reader must know of the runs behind a comparison or an answer, in sentences."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from attnlab.config.schema import PER_ARM
from attnlab.report.collect import Run

MOST_LISTED = 8
DIFFERENT = "the runs used different data, so their numbers are not comparable"


def selection(config: dict[str, Any]) -> Iterable[str]:
    """Of all runs that agree in this."""
    if config["trainer.select_on"] == "test":
        yield (
            "Checkpoints were selected on the test split (trainer.select_on=test, as the released "
            "code does), so every test number here is optimistic."
        )


def differences(arms: dict[str, dict[str, Any]]) -> Iterable[str]:
    """What sets arms apart beside attention, by label."""
    for key in sorted(PER_ARM):
        values = {label: config[key] for label, config in arms.items() if key in config}
        if len(set(values.values())) > 1:
            said = ", ".join(f"{value} in {label}" for label, value in values.items())
            yield (
                "The arms differ by more than attention, as they do in the released code: "
                f"{key} is {said}."
            )


def failures(failed: list[Run]) -> Iterable[str]:
    """A warning: which runs fail may depend on the arm, and those left may be the better ones."""
    if failed:
        names = Counter(f"{run.config['model.name']} seed {run.config['seed']}" for run in failed)
        named = [name if n == 1 else f"{name} ({n} runs)" for name, n in names.items()]
        kinds = {run.cause.partition(":")[0] for run in failed}
        causes = ", ".join(sorted(filter(str.isidentifier, kinds)))  # such as NonFinite
        yield (
            f"WARNING: without a result: {listed(named)}{f' ({causes})' * bool(causes)}; the "
            "others may make their arm look better than it is."
        )


def listed(items: list) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(items) - MOST_LISTED} more" if len(items) > MOST_LISTED else ""
    return ", ".join(map(str, items[:MOST_LISTED])) + more


def repeats(repeated: list[Run]) -> Iterable[str]:
    """What is not counted, because a run of its arm with its seed is."""
    if repeated:
        names = ", ".join(str(run.folder) for run in repeated[:3])
        more = f" and {len(repeated) - 3} more" if len(repeated) > 3 else ""
        yield (
            "Runs that repeat a seed of their arm are no further evidence and are not counted: "
            f"{names}{more}."
        )


def code_changes(runs: Iterable[Run]) -> list[str]:
    """A warning if not all starts of the runs are known to have had the same code."""
    starts = [start for run in runs for start in run.starts]
    sources = sorted({start.get("source", "unknown") for start in starts})
    if len(sources) < 2:
        return []
    return [
        "WARNING: the code that computes results was or may have been changed between these runs "
        f"(source {', '.join(sources)} in env.json); a difference may be the code's."
    ]
