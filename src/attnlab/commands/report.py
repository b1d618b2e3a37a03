"""Verdicts, tables and figures of all runs in a folder:  attnlab report outputs."""

from collections.abc import Callable
from pathlib import Path

from attnlab.errors import BadInput

RUNS = "<runs>"


def main(runs: Path, out: str = f"{RUNS}/report") -> None:
    """Write index.html (opens from disk), report.md and figures/ as PNG and SVG."""
    folder = runs.parent if runs.is_file() else runs
    reporter()(runs, Path(out.replace(RUNS, str(folder))))


def reporter() -> Callable[[Path, Path], None]:
    """`attnlab.report.render.report`. Errors: `BadInput` where what it needs is not installed."""
    try:
        from attnlab.report.render import report
    except ModuleNotFoundError as error:
        raise BadInput(f"the report needs {error.name}: pip install 'attnlab[report]'") from None
    return report
