"""What an NVIDIA GPU shows of this project, in less than nine minutes:  make gpu

Correct kernels, their speed, tiles for this card, memory and time of the paper's tables, training,
logs. Every stage writes its rows and the page results/gpu/<device>/README.md as soon as it ends;
started again, it measures what is missing. size=smoke does a little of everything on the CPU, with
the kernels in Triton's interpreter. See docs/gpu.md.
"""

import os
import sys
from pathlib import Path

from attnlab.commands.arguments import main_with
from attnlab.errors import BadInput


def main(size: str = "card", results: Path = Path("results/gpu"), stages: str = "all") -> None:
    """Run the stages named, by commas; exit code 1 if rows are missing or failed."""
    from attnlab.benchmarks.gpu.plan import STAGES
    from attnlab.benchmarks.gpu.runner import measure

    chosen = list(STAGES) if stages == "all" else stages.split(",")
    if size not in ("card", "smoke") or set(chosen) - set(STAGES):
        raise BadInput(
            f"size={size} stages={stages}: must be card or smoke; "
            f"all or some of {', '.join(STAGES)}"
        )
    if size == "smoke":
        os.environ["TRITON_INTERPRET"] = "1"  # before the processes of the stages import Triton
    unfinished = measure(results, Path("outputs/gpu"), size, chosen, program, "attnlab.run")
    sys.exit(unfinished > 0)


def program(cfg, folder: Path) -> None:
    """Train and test; the stages import no room above theirs."""
    from attnlab.run import run

    run(cfg, folder)


if __name__ == "__main__":
    main_with(main)
