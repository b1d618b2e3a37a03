"""Text from a trained language model:  python scripts/generate.py run=<folder> prompt="..."."""

from arguments import Run, main_with


def main(
    run: Run,
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
    place = choose_device(cfg.runtime, cfg.trainer.precision)
    print(generate(cfg, run.path, prompt, tokens, temperature, top_k, seed, place))


if __name__ == "__main__":
    main_with(main)
