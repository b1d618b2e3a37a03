"""Translate text by a trained model:  attnlab translate run=<folder> text=<text>."""

from attnlab.commands.arguments import RunArgument


def main(
    run: RunArgument,
    text: str,
    beam_width: int | None = None,
    length_penalty: float | None = None,
    device: str = "same",
) -> None:
    """Print the translation. beam_width, length_penalty: the run's own where not given;
    beam_width=1 always takes the likeliest token.
    """
    from attnlab.inspection.translate import translations
    from attnlab.runtime.device import choose_device

    cfg = run.config(device)
    chosen = choose_device(cfg.runtime, cfg.trainer.precision)
    print(translations(cfg, run.path, [text], chosen, beam_width, length_penalty)[0])
