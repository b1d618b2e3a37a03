"""What cached keys and values save in generation:

    python scripts/benchmark_generation.py
    python scripts/benchmark_generation.py model=neural_d2 data=pydocs tokens=128 json=rows.json

The likeliest tokens by an untrained model of the size that train.py would train: each step
computes the newest token alone, from cached keys and values, or all tokens. Both take turns in one
process: medians, and median [quartiles] of the ratio. model: several by commas, by default all.
"""

import json as json_format
from pathlib import Path

from attnlab.commands.arguments import main_with
from attnlab.config.compose import CONFIGS, compose_config, plain
from attnlab.config.messages import nearest, validate
from attnlab.errors import BadInput

MODELS = sorted(file.stem for file in (CONFIGS / "model").glob("*.yaml"))
TEXTS = ["pydocs", "wikitext103", "wikitext2"]


def main(
    model: str = ",".join(MODELS),
    data: str = "wikitext103",
    tokens: int = 512,
    device: str = "auto",
    json: Path | None = None,
) -> None:
    """Print a table, and write its rows to `json`."""
    chosen = model.split(",")
    for key, values, allowed in ("model", chosen, MODELS), ("data", [data], TEXTS):
        for value in values:
            if value not in allowed:
                near = nearest(value, allowed)
                raise BadInput(f"{key}={value}: must be among {', '.join(allowed)}{near}")
    if json and not json.absolute().parent.is_dir():
        raise BadInput(f"json={json}: there is no folder {json.parent}")
    arms = {
        name: validate(
            plain(compose_config([f"model={name}", f"data={data}", f"runtime.device={device}"]))
        )
        for name in chosen
    }
    longest = arms[chosen[0]].data.sequence_length
    if not 1 <= tokens <= longest:
        raise BadInput(f"tokens={tokens}: must be from 1 to data.sequence_length={longest}")
    from attnlab.benchmarks.generation import generation
    from attnlab.runtime.device import choose_device

    rows = []
    for row in generation(arms, tokens, choose_device(arms[chosen[0]].runtime)):
        if not rows:
            print(", ".join(f"{key} {row[key]}" for key in ("device", "threads", "torch")))
            print(f"\n| model | {tokens} tokens, cached ms | ratio to uncached | same tokens |")
            print("|---|---|---|---|")
        rows.append(row)
        low, high = row["ratio_quartiles"]
        ratio = f"{row['ratio_to_uncached']:.2f} [{low:.2f}, {high:.2f}]"
        print(f"| {row['arm']} | {row['ms']:.0f} | {ratio} | {row['same_tokens']} |", flush=True)
    if json:
        json.write_text(json_format.dumps(rows, indent=0) + "\n")


if __name__ == "__main__":
    main_with(main)
