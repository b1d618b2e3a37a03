"""All runs below a folder in one table:  attnlab summary outputs.

attnlab summary outputs                        Markdown, the most important columns
attnlab summary outputs out=runs.parquet       for pandas, or out=runs.csv: one row a run
"""

from pathlib import Path


def main(runs: Path, out: Path | None = None) -> None:
    """Print the table, in which every row is one run with one seed; or write it to `out`, with
    every configuration key that differs between the runs and all of result.json.
    """
    from attnlab.report.collect import collect
    from attnlab.report.summary import markdown

    found = collect(runs)
    if out is None:
        print(markdown(found))
        print(f"{len(found)} runs; each row is a single run with one seed.")
    else:
        from attnlab.report.frame import write

        write(found, out)
        print(f"{len(found)} runs: {out}")
