"""Verdicts, tables and figures of all runs in a folder:  attnlab report outputs."""

from pathlib import Path

from attnlab.errors import BadInput

RUNS = "<runs>"


def main(runs: Path, out: str = f"{RUNS}/report") -> None:
    """Write index.html (opens from disk), report.md and figures/ as PNG and SVG."""
    try:
        from attnlab.report.render import report
    except ModuleNotFoundError as error:
        raise BadInput(f"the report needs {error.name}: pip install 'attnlab[report]'") from None
    folder = runs.parent if runs.is_file() else runs
    report(runs, Path(out.replace(RUNS, str(folder))))
