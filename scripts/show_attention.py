"""Attention maps of a run as a picture:

    python scripts/show_attention.py run=<folder> text="The statement"     a language model
    python scripts/show_attention.py run=<folder> image=12                 a ViT, on a test image
    python scripts/show_attention.py run=<folder> text=... other=<folder>  two runs, side by side

The report (scripts/report.py) shows the pictures that stand in the run folders.
"""

from pathlib import Path

from arguments import Run, main_with

from attnlab.errors import BadInput


def main(
    run: Run,
    text: str | None = None,
    image: int | None = None,
    other: Run | None = None,
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
        raise BadInput(f"pictures need {error.name}: pip install -e '.[report]'") from None
    from attnlab.inspection.attention_maps import file_name, save, views

    found = views(runs, text, image, layers)
    name = file_name(text, image, [view.cfg for view in found[1:]])
    file = out or run.path / FOLDER / name
    draw(found, file)
    save(found, file.with_suffix(".npz"))
    print(f"picture: {file}\narrays: {file.with_suffix('.npz')}")


if __name__ == "__main__":
    main_with(main)
