"""Translate text by a trained model:  attnlab translate run=<folder> text=<text>."""

from attnlab.commands.arguments import RunArgument


def main(
    run: RunArgument,
    text: str,
    beam_width: int = 4,
    length_penalty: float = 0.6,
    device: str = "same",
) -> None:
    """Print the translation; beam_width=1 always takes the likeliest token."""
    from attnlab.inspection.translate import translations
    from attnlab.runtime.device import choose_device

    cfg = run.config(device)
    chosen = choose_device(cfg.runtime)
    print(translations(cfg, run.path, [text], beam_width, length_penalty, chosen)[0])
