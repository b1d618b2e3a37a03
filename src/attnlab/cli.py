"""The command line around a run: every problem said at once before anything is touched, and exit
codes.

`check` composes the configuration (for a sweep, of every job) the way Hydra will and reports all
that is wrong; only then does Hydra start the job, so bad input never leaves a folder behind.
"""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnlab.config import ADDED, Config
from attnlab.errors import (
    BadInput,
    FolderInUse,
    Interrupted,
    NonFinite,
    OutOfResources,
    PeerLost,
)
from attnlab.folder import RunFolder
from attnlab.validation import nearest, unknown_key, validate

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FAILURES = (BadInput, FolderInUse, NonFinite, OutOfResources, PeerLost, Interrupted)


def guard(main: Callable[[], None]) -> None:
    """Check the command line, then run `main`, a function that Hydra wraps."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    args = get_args_parser().parse_args()
    informs = (args.help, args.hydra_help, args.info, args.shell_completion)
    with exit_on_failure():
        if not any(informs):
            check(args.overrides, sweep=args.multirun)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # a defect of ours shows its whole traceback
    main()


@contextlib.contextmanager
def exit_on_failure():
    """End the process with a failure's exit code and one line a problem on stderr."""
    try:
        yield
    except FAILURES as failure:
        # of processes that torchrun starts the first one speaks, unless it is what the others lost
        if os.environ.get("RANK", "0") == "0" or isinstance(failure, PeerLost):
            for line in str(failure).splitlines():
                print(f"error: {line}", file=sys.stderr)
        sys.exit(failure.exit_code)
    except KeyboardInterrupt:  # before or after training, which has its own handling
        sys.exit(128 + signal.SIGINT)


def check(overrides: list[str], sweep: bool = False) -> None:
    """Raise `BadInput` with every problem in the overrides; in a sweep, those of every job."""
    problems: dict[str, None] = {}
    listed = jobs(overrides, sweep)
    if "TORCHELASTIC_RUN_ID" in os.environ and listed != [overrides]:
        raise BadInput("torchrun starts one run, not a sweep; for a sweep, python train.py -m")
    for job in listed:
        problems.update(dict.fromkeys(_problems(job)))
    if problems:
        raise BadInput("\n".join(problems))


def jobs(overrides: list[str], sweep: bool = False) -> list[list[str]]:
    """The overrides of every job that the command line starts: of one, or of a sweep's.

    Errors: `BadInput` for what cannot be parsed.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as error:
        raise BadInput(f"{error.override}: cannot be parsed; write key=value") from None
    single = [p.input_line for p in parsed if not p.is_sweep_override()]
    try:
        hydra = compose_config(single, hydra=True).hydra
    except (HydraException, OmegaConfBaseException, BadInput):
        hydra = None  # reported by _problems
    if hydra is not None and hydra.mode == RunMode.MULTIRUN:
        sweep = True
        grid = hydra.sweeper.params or {}
        parsed = OverridesParser.create().parse_overrides(
            [f"{k}={v}" for k, v in grid.items()] + overrides
        )
    if not sweep:
        return [overrides]
    return [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def _problems(overrides: list[str]) -> Iterator[str]:
    """Every problem of one job: compose, and on a bad override go on without it."""
    while True:
        try:
            composed = compose_config(overrides, hydra=True)
            cfg = validate(plain(composed))
            RunFolder(run_path(cfg, composed.hydra.run.dir), cfg).check()
            return
        except BadInput as error:
            yield from str(error).splitlines()
            return
        except (HydraException, OmegaConfBaseException) as error:
            culprit = next((o for o in overrides if _blamed(o, error)), None)
            if isinstance(error, MissingConfigException) and culprit:
                group, _, choice = culprit.lstrip("+").partition("=")
                options = sorted(error.options or [])
                near = nearest(choice, options)
                yield f"{culprit}: unknown {group}{near}; allowed: {', '.join(options)}"
            elif culprit:
                key = culprit.lstrip("+~").partition("=")[0]
                unknown = str(error).startswith("Could not override")
                yield unknown_key(key) if unknown else _first_line(culprit, error)
            else:
                yield _first_line(" ".join(overrides), error)
                return
            overrides = [o for o in overrides if o != culprit]


def _blamed(override: str, error: Exception) -> bool:
    key, _, value = override.lstrip("+~").partition("=")
    if isinstance(error, MissingConfigException):
        return error.missing_cfg_file == f"{key}/{value}"
    text = str(error)
    return f"'{key}'" in text or f"'{override}'" in text or f"{key}=" in text


def _first_line(what: str, error: Exception) -> str:
    line = str(error).strip().splitlines()[0]
    if line.startswith("Ambiguous value"):
        line = "several values; add -m for a sweep, or write [a,b] for a list"
    return f"{what}: {line}"


def compose_config(overrides: list[str], hydra: bool = False) -> DictConfig:
    """What Hydra makes of the overrides; with `hydra`, its own settings as well."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=overrides, return_hydra_config=hydra)


def plain(composed) -> dict:
    """The composed configuration without Hydra's own as a plain dict, interpolations resolved."""
    ours = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    return OmegaConf.to_container(ours, resolve=True, throw_on_missing=False)


def run_path(cfg: Config, chosen: str) -> Path:
    """The run folder: Hydra's run.dir if the user chose one, else by configuration."""
    return Path(cfg.folder if chosen == "." else chosen)


def load(folder: Path, name: str = "run") -> Config:
    """The configuration that a run folder was made with; `name` is its key on the command line."""
    file = folder / "config.yaml"
    if not file.is_file():
        raise BadInput(f"{name}={folder}: no run folder there (it has no config.yaml)")
    stored = OmegaConf.load(file)
    for key, before in ADDED.items():
        if OmegaConf.select(stored, key) is None:
            OmegaConf.update(stored, key, before)
    return validate(plain(stored))
