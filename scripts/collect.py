"""The runs below a folder in one file, to be kept without their folders:

    python scripts/collect.py runs=outputs out=results/mine/runs.jsonl
    python scripts/collect.py runs=outputs out=results/mine/runs.jsonl speeds=no

A line holds configuration, environment, result and a curve of about 50 points. scripts/report.py
reads the file as it reads run folders. speeds=no leaves out how fast the runs were, for runs that
shared their machine with other work.
"""

import sys
from pathlib import Path

from arguments import main_with

from attnlab.errors import BadInput


def main(runs: Path, out: Path, speeds: str = "yes") -> None:
    """Write the file, sorted by run, and say how many runs it holds; damaged runs are named."""
    if speeds not in ("yes", "no"):
        raise BadInput(f"speeds={speeds}: must be yes or no")
    from attnlab.report.archive import NAME, records
    from attnlab.report.collect import pack

    if out.name != NAME:
        raise BadInput(f"out={out}: must end in {NAME}, the name that the report looks for")
    try:
        for run in pack(runs, out, speeds == "yes"):
            print(f"left out: {run.folder}: {run.cause}", file=sys.stderr)
    except OSError as error:
        raise BadInput(f"out={out}: cannot be written: {error}") from None
    print(f"{sum(1 for _ in records(out))} runs: {out}")


if __name__ == "__main__":
    main_with(main)
