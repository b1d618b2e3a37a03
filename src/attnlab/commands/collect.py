"""Collect the runs below a folder in one file that can replace them:

    attnlab collect runs=outputs out=kept/runs.jsonl
    attnlab collect runs=outputs out=kept/runs.jsonl speeds=no

A line holds configuration, environment, result and a curve of about 50 points. attnlab report
reads the file as it reads run folders. Absolute paths are written relative to the working folder.
speeds=no leaves out how fast the runs were, for runs that shared their machine with other work.
"""

import sys
from pathlib import Path

from attnlab.errors import BadInput


def main(runs: Path, out: Path, speeds: bool = True) -> None:
    """Write the file, sorted by run, and say how many runs it holds; damaged runs are named."""
    from attnlab.report.archive import NAME, records
    from attnlab.report.collect import pack

    if out.name != NAME:
        raise BadInput(f"out={out}: must end in {NAME}, the name that the report looks for")
    place = out.resolve().parent
    if place != runs.resolve() and place.is_relative_to(runs.resolve()):
        raise BadInput(
            f"out={out}: lies in a subfolder of runs={runs}, where it would be read as runs"
        )
    try:
        for run in pack(runs, out, speeds):
            print(f"left out: {run.folder}: {run.cause}", file=sys.stderr)
    except OSError as error:
        raise BadInput(f"out={out}: cannot be written: {error}") from None
    print(f"{sum(1 for _ in records(out))} runs: {out}")
