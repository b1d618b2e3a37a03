"""Attention maps of a run as a picture:

    attnlab show_attention run=<folder> text="The statement"     a language model
    attnlab show_attention run=<folder> text="A dog runs."       a translation: cross-attention
    attnlab show_attention run=<folder> image=12                 a ViT, on a test image
    attnlab show_attention run=<folder> text=... other=<folder>  two runs, side by side

The report (attnlab report) shows the pictures that stand in the run folders.
"""

from pathlib import Path

from attnlab.commands.arguments import RunArgument
from attnlab.errors import BadInput


def main(
    run: RunArgument,
    text: str | None = None,
    image: int | None = None,
    other: RunArgument | None = None,
    layers: str = "all",
    out: Path | None = None,
    device: str = "same",
) -> None:
    """Write <run>/attention/<text or image>.png, or `out`, and the weights as arrays beside it
    (.npz), and say so.
    """
    if out is not None and out.suffix != ".png":
        raise BadInput(f"out={out}: must end in .png")
    runs = [(each.path, each.config(device)) for each in (run, other) if each is not None]
    try:
        from attnlab.report.maps import draw
        from attnlab.report.pictures import FOLDER
    except ModuleNotFoundError as error:
        raise BadInput(f"pictures need {error.name}: pip install 'attnlab[report]'") from None
    from attnlab.inspection.attention_maps import file_name, save, views

    found = views(runs, text, image, layers)
    name = file_name(text, image, [view.cfg for view in found[1:]])
    file = out or run.path / FOLDER / name
    draw(found, file)
    save(found, file.with_suffix(".npz"))
    print(f"picture: {file}\narrays: {file.with_suffix('.npz')}")
