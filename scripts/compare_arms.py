"""Every difference between two arms; fails if they differ in more than attention.

    python scripts/compare_arms.py "model=dot_product data=cifar10" "model=neural_d2 data=cifar10"
    python scripts/compare_arms.py outputs/wikitext2/dot_product/seed0_... outputs/...

An arm is a run folder or the overrides of one run. Compared are the resolved configurations, and
the models built from them: modules, parameters by name and shape, initial values, and the order of
the training samples.
"""

import sys
from pathlib import Path

from attnlab.cli import check, exit_on_failure
from attnlab.config.compose import load
from attnlab.config.schema import Config


def main() -> None:
    """Print the differences; exit code 1 if there are others than attention's."""
    if len(sys.argv) != 3 or {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        sys.exit(0 if len(sys.argv) < 3 else 2)
    with exit_on_failure():
        a, b = map(configuration, sys.argv[1:])
        from attnlab.sweeps.pairing import attention_differences, differences

        for where, what in attention_differences(a, b):
            print(f"attention  {where}: {what}")
        found = list(differences(a, b))
        for where, what in found:
            print(f"OTHER      {where}: {what}")
        print("equal but for attention" if not found else f"{len(found)} other differences")
        sys.exit(1 if found else 0)


def configuration(arm: str) -> Config:
    """The configuration of a run folder, or of overrides."""
    if "=" not in arm:
        return load(Path(arm))
    from attnlab.sweeps.jobs import compose_jobs

    check(arm.split())
    (job,) = compose_jobs([arm.split()])
    return job.cfg


if __name__ == "__main__":
    main()
