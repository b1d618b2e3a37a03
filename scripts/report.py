"""Verdicts, tables and figures of all runs in a folder:  python scripts/report.py outputs."""

from pathlib import Path

from arguments import main_with

from attnlab.errors import BadInput

RUNS = "<runs>"


def main(runs: Path, out: str = f"{RUNS}/report") -> None:
    """Write index.html (opens from disk), report.md and figures/ as PNG and SVG."""
    try:
        from attnlab.report.render import report
    except ModuleNotFoundError as error:
        raise BadInput(f"the report needs {error.name}: pip install -e '.[report]'") from None
    report(runs, Path(out.replace(RUNS, str(runs))))


if __name__ == "__main__":
    main_with(main)
