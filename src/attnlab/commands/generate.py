"""Text from a trained language model:  attnlab generate run=<folder> prompt="..."."""

from attnlab.commands.arguments import RunArgument


def main(
    run: RunArgument,
    prompt: str,
    tokens: int = 64,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
    device: str = "same",
) -> None:
    """Print the prompt continued by `tokens` tokens; temperature=0 always takes the likeliest."""
    from attnlab.inspection.generate import generate
    from attnlab.runtime.device import choose_device

    cfg = run.config(device)
    print(
        generate(
            cfg,
            run.path,
            prompt,
            tokens,
            temperature,
            top_k,
            seed,
            choose_device(cfg.runtime, cfg.trainer.precision),
        )
    )
