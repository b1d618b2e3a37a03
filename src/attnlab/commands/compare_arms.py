"""Every difference between two arms; fails if they differ in more than attention.

    attnlab compare_arms "model=dot_product data=cifar10" "model=neural_d2 data=cifar10"
    attnlab compare_arms outputs/wikitext2/dot_product/seed0_... outputs/...

An arm is a run folder or the overrides of one run. Compared are the resolved configurations, and
the models built from them: modules, parameters by name and shape, initial values, and the order of
the training samples.
"""

import sys
from pathlib import Path

from attnlab import cli
from attnlab.config.compose import load, split_overrides
from attnlab.config.schema import Config
from attnlab.errors import BadInput


def main(*arms: str) -> None:
    """Print the differences; exit code 1 if there are others than attention's."""
    if len(arms) != 2:
        raise BadInput(f"{len(arms)} arms: must be two, each a run folder or overrides in quotes")
    a, b = map(configuration, arms)
    from attnlab.sweeps.pairing import attention_differences, differences

    for where, what in attention_differences(a, b):
        print(f"attention  {where}: {what}")
    found = list(differences(a, b))
    for where, what in found:
        print(f"OTHER      {where}: {what}")
    print("they differ only in attention" if not found else f"{len(found)} other differences")
    sys.exit(1 if found else 0)


def configuration(arm: str) -> Config:
    """The configuration of a run folder, or of overrides."""
    if "=" not in arm or Path(arm).is_dir():
        return load(Path(arm))
    from attnlab.sweeps.jobs import compose_jobs

    overrides = split_overrides(arm)
    cli.check_overrides(overrides)
    listed = cli.jobs(overrides)
    if len(listed) > 1:
        raise BadInput(f"{arm}: is {len(listed)} runs; must be one")
    (job,) = compose_jobs(listed)
    return job.cfg
