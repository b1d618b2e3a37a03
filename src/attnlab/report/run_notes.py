"""What a reader must know of the runs behind a comparison or an answer, in sentences."""

from collections.abc import Iterable

from attnlab.report.collect import Run


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
    """A warning if not all starts of the runs had the same code."""
    starts = [start for run in runs for start in run.starts]
    sources = sorted({start["source"] for start in starts if "source" in start})
    if len(sources) < 2:
        return []
    return [
        "WARNING: the code that computes results was changed between these runs "
        f"(source {', '.join(sources)} in env.json); a difference may be the code's."
    ]
