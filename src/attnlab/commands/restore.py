"""Restore the folders of collected runs, so that a sweep goes on from them:

    attnlab restore runs=kept/runs.jsonl out=outputs

`attnlab collect` writes the file; keep it where it is safe. On another machine, or after the loss
of a disk, restore it and type the sweep's command again: runs that were finished are skipped. A
restored run has no checkpoints, so the others start anew. Folders that are there are left alone.
"""

from pathlib import Path

from attnlab.errors import BadInput


def main(runs: Path, out: Path = Path("outputs")) -> None:
    """Make the folders, and say how many."""
    from attnlab.report.archive import restore

    if not runs.is_file():
        wrong = "is a folder" if runs.is_dir() else "no such file"
        raise BadInput(f"runs={runs}: {wrong}; it must be a file that attnlab collect wrote")
    try:
        made, there = restore(runs, out)
    except OSError as error:
        raise BadInput(f"runs={runs} out={out}: {error}") from None
    print(f"runs restored below {out}: {made}; there before: {there}")
