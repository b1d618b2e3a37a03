"""Train one model, or the jobs of a sweep:  attnlab train model=neural_d2 data=cifar100."""

import hydra
from hydra.core.hydra_config import HydraConfig

from attnlab.cli import guard
from attnlab.config.compose import CONFIGS, plain, run_path
from attnlab.config.messages import validate
from attnlab.config.tuning import refuse_tuning
from attnlab.runtime.exits import exit_on_failure


def main() -> None:
    """Check the command line, which Hydra reads itself; then train."""
    guard(train)


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def train(composed) -> None:
    """One run; Hydra calls this once a job."""
    with exit_on_failure():
        refuse_tuning(composed)
    cfg = validate(plain(composed))
    # torch is imported only after the configuration is known to be good
    from attnlab.run import run

    with exit_on_failure():
        run(cfg, run_path(cfg, HydraConfig.get().run.dir))
