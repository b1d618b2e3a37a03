"""All runs below a folder in one Markdown table:  attnlab summary runs=outputs."""

from pathlib import Path


def main(runs: Path) -> None:
    """Print the table; every row is one run with one seed."""
    from attnlab.report.collect import collect
    from attnlab.report.tables import markdown

    found = collect(runs)
    print(markdown(found))
    print(f"{len(found)} runs; each row is a single run with one seed.")
