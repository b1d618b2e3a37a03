"""Prepares each data set of a list of runs once, before the first run starts, and reports at once
what is missing.

As a program: reads configurations (JSON, one a line) on stdin, prints each one's number of
training samples.
"""

import json
import subprocess
import sys
from collections.abc import Iterable

from attnlab.config.schema import Config
from attnlab.errors import BadInput, OutOfResources
from attnlab.runs.log import to_stderr
from attnlab.runtime.exits import exit_on_failure
from attnlab.sweeps.python import python


def prepare(cfgs: Iterable[Config]) -> dict[str, int]:
    """Prepare the data of all configurations in a process of its own, whose memory goes with it;
    training samples of each data set by its `key`.

    Errors: `BadInput` with a line for every data set that cannot be had; `OutOfResources` if a
    signal ended that process.
    """
    distinct = {key(cfg): cfg for cfg in cfgs}
    if not distinct:
        return {}
    lines = "".join(cfg.model_dump_json() + "\n" for cfg in distinct.values())
    command = python("attnlab.sweeps.prepare")
    done = subprocess.run(command, input=lines, stdout=subprocess.PIPE, text=True)
    if done.returncode < 0:
        raise OutOfResources(
            f"preparing the data was killed by signal {-done.returncode}: too little memory?"
        )
    if done.returncode:
        raise BadInput(f"preparing the data ended with exit code {done.returncode}")
    found = json.loads(done.stdout)
    if found["problems"]:
        raise BadInput("\n".join(found["problems"]))
    return dict(zip(distinct, found["samples"], strict=True))


def key(cfg: Config) -> str:
    """A key that configurations with the same prepared data share."""
    return cfg.data.model_dump_json() + cfg.runtime.cache


def main() -> None:
    """See the module's docstring."""
    from attnlab.data.loader import build_data

    to_stderr()
    problems, samples = [], []
    for line in sys.stdin:
        try:
            cfg = Config.model_validate_json(line)
            data = build_data(cfg.data, cfg.seed, cfg.runtime.cache)
            samples.append(len(data.train()))
        except BadInput as error:
            problems.append(str(error))
    print(json.dumps({"problems": list(dict.fromkeys(problems)), "samples": samples}))


if __name__ == "__main__":
    with exit_on_failure():
        main()
