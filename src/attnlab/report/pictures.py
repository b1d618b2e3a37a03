"""The pictures of attention maps (`attnlab show_attention`) that stand in run folders."""

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from attnlab.report.compare import Comparison
from attnlab.runs.files import write_atomic

FOLDER = "attention"  # in a run's folder
ABOUT = "Description"  # the key of a picture's caption in its metadata
MOST = 8  # in a report: each adds up to some MB to the page
MOST_PIXELS = 2000  # of a side in the page, which is 1120 wide; the file has all of them


@dataclass
class Picture:
    """file: relative to the report. data: the PNG as a data URI, `width` wide in the page."""

    caption: str
    file: str
    data: str
    width: int

    @property
    def markdown(self) -> str:
        """The caption, whose text may be anything, without marks that mean something."""
        return re.sub(r"([\\`*_\[\]<$])", r"\\\1", self.caption)


class Album:
    """The pictures of one report in `out`: every one once, MOST of them in all."""

    def __init__(self, out: Path):
        self.out, self.shown = out, 0
        self.seen: set[Path] = set()

    def take(self, comparison: Comparison) -> tuple[list[Picture], list[str]]:
        """The pictures of a comparison's runs, copied into the report; what is missing and why."""
        taken: list[Picture] = []
        missing, more = [], 0
        for run in comparison.runs:
            for file in sorted((run.folder / FOLDER).glob("*.png")):
                if file in self.seen:  # an ablation has its baseline's runs
                    continue
                self.seen.add(file)
                if self.shown == MOST:
                    more += 1
                    continue
                name = f"figures/{FOLDER}_{comparison.slug}_{len(taken) + 1}.png"
                try:
                    taken.append(self._copy(file, name))
                    self.shown += 1
                except ValueError as error:
                    missing.append(f"A picture of attention is missing: {error}.")
        if more:
            missing.append(
                f"Of these runs' pictures of attention {more} more are not shown; a report shows "
                f"at most {MOST}."
            )
        return taken, missing

    def _copy(self, file: Path, name: str) -> Picture:
        """Errors: ValueError if the file cannot be read as a picture."""
        try:
            content = file.read_bytes()
            with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
                image.load()  # all of it, so that damage shows
                about = " ".join(image.text.get(ABOUT, file.name).split())
                width = image.width * 2 // 3  # drawn at 150 dots an inch, a page has 96
                small = _small(image) or content
        except Exception as error:  # what a damaged file makes of PIL has no base class
            raise ValueError(f"{file} cannot be read ({type(error).__name__})") from None
        write_atomic(self.out / name, content)
        data = f"data:image/png;base64,{base64.b64encode(small).decode()}"
        return Picture(f"{about}. Run {file.parents[1].name}.", name, data, width)


def _small(image: Image.Image) -> bytes | None:
    """A large picture as the page has it; None for others."""
    if max(image.size) <= MOST_PIXELS:
        return None
    image.thumbnail((MOST_PIXELS, MOST_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
