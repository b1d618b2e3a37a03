"""A table of texts, for the page and for Markdown alike."""

from dataclasses import dataclass
from typing import Literal

DASH = "—"  # a value that is not known


@dataclass(frozen=True)
class Link:
    """A cell that leads somewhere; href is relative to the report."""

    text: str
    href: str


Cell = str | Link
Kind = Literal["text", "number"]


@dataclass(frozen=True)
class Table:
    """columns: heading -> what stands below it; rows: a cell for every column."""

    columns: dict[str, Kind]
    rows: list[list[Cell]]

    def markdown(self) -> str:
        """The table in Markdown, its columns aligned."""
        lines = [[_escape(name) for name in self.columns]]
        lines += [[_markdown(cell) for cell in row] for row in self.rows]
        kinds = list(self.columns.values())
        widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(kinds))]
        rule = [
            "-" * (width - 1) + ":" if kind == "number" else "-" * width
            for kind, width in zip(kinds, widths, strict=True)
        ]
        padded = [
            [
                cell.rjust(width) if kind == "number" else cell.ljust(width)
                for cell, kind, width in zip(line, kinds, widths, strict=True)
            ]
            for line in lines
        ]
        return "\n".join("| " + " | ".join(line) + " |" for line in (padded[0], rule, *padded[1:]))


def _markdown(cell: Cell) -> str:
    if isinstance(cell, Link):
        return f"[{_escape(cell.text)}]({cell.href})"
    return _escape(cell)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
