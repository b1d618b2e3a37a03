"""The command line around a run: all problems are reported at once before anything is touched.

`check_overrides` composes the configuration (of every job in a sweep) as Hydra will, and reports
everything that is wrong. Only then is anything started, so bad input never leaves a folder behind.
"""

import contextlib
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from tempfile import TemporaryDirectory

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode

from attnlab.config.compose import compose_config, plain, run_path, sections
from attnlab.config.messages import validate
from attnlab.config.question import check_question
from attnlab.config.refused import ONE_OPTION, culprit, reason, refused
from attnlab.config.tuning import check_tuning, is_tuning
from attnlab.errors import BadInput
from attnlab.runs.folder import RunFolder
from attnlab.runs.log import to_stderr
from attnlab.runtime.exits import exit_on_failure
from attnlab.runtime.torchrun import local_rank

log = logging.getLogger(__name__)

# What is not typed, and what is set instead.
FOLLOWS = {
    "switches": "protocol sets the switches; set keys, such as arch.positions",
    "size": "follows from data and scale; set scale, or keys such as arch.layers",
    "budget": "follows from data and scale; set scale, or keys such as trainer.max_steps",
    "kind": "follows from data; set data",
}
_PLACE = "runtime.output_root=<folder> says where runs lie, each with its config.yaml"
REFUSED = {  # of Hydra's own settings
    "hydra.job.chdir": "a run stays in the folder where it was started",
    "hydra.output_subdir": _PLACE,
    "hydra.sweep.dir": _PLACE,
    "hydra.sweep.subdir": _PLACE,
    "hydra.sweeper.max_batch_size": "launcher=joblib hydra.launcher.n_jobs=<n> runs n at a time",
}
DECIDE = ("experiment", "hydra.mode", "hydra.sweeper")  # whether there is a sweep, and which
MANY = 50  # jobs: each takes some 0.1 s to check
FOR_SWEEPS = re.compile(r"launcher=(?!process$)|\+*hydra\.launcher")


def guard(main: Callable[[], None]) -> None:
    """Check the command line, then run `main`, a function that Hydra wraps. One run is started
    without Hydra, which would compose its configuration twice more.
    """
    to_stderr()
    parser = get_args_parser()
    parser.error = _refuse
    scratch = contextlib.ExitStack()
    alone = False
    with exit_on_failure():
        dashed = [word for word in sys.argv[1:] if re.match(r"-\w.*=", word)]
        if dashed:  # argparse would take -protocol=released for -p
            raise BadInput("\n".join(f"{w}: write {w.lstrip('-')}" for w in dashed))
        args = parser.parse_args()
        for option in ("config_name", "config_path", "config_dir"):
            if getattr(args, option):
                flag = f"--{option.replace('_', '-')}"
                raise BadInput(f"{flag}: there is one configuration; choose by group=option")
        if args.cfg and (args.multirun or is_sweep(args.overrides)):
            raise BadInput("--cfg: shows one run; leave out -m and values with commas")
        if args.cfg and _grid(args.overrides, sweep=False) is not None:
            raise BadInput("--cfg: shows one run; hydra.mode=RUN makes one of an experiment")
        if args.cfg == "job" and not args.resolve:
            sys.argv.append("--resolve")  # values, not what they refer to
        if not any((args.help, args.hydra_help, args.info, args.shell_completion)):
            if check_overrides(args.overrides, sweep=args.multirun):
                sys.argv = [_of_jobs(w) if w in args.overrides else w for w in sys.argv]
                sys.argv.append(f"hydra.sweep.dir={scratch.enter_context(TemporaryDirectory())}")
            elif not (args.cfg or args.package or args.experimental_rerun):
                alone = not any(map(_of_hydra, _parsed(args.overrides)))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # a defect of ours shows its full traceback
    if alone:
        composed = compose_config(args.overrides)
        HydraConfig.instance().set_config(composed)
        inspect.unwrap(main)(composed)
        return
    with scratch:
        main()


def _of_hydra(parsed: Override) -> bool:
    """Whether it sets something of Hydra's own, but for what the package reads itself."""
    key = parsed.key_or_group
    return key.startswith("hydra") and key not in ("hydra.run.dir", "hydra.mode")


def _of_jobs(override: str) -> str:
    """A fixed key of a sweep as a choice of one: Hydra composes a sweep of its own from what is
    fixed, where the key may not exist, because a job's model or data has it.
    """
    (parsed,) = _parsed([override])
    key, _, value = override.partition("=")
    group = "." not in key or key.lstrip("+").startswith(("hydra", "tune", "~"))
    if group or value in ("", "null") or parsed.is_sweep_override():  # no choice takes null
        return override
    return f"{key}=choice({value})"


def _refuse(message: str) -> None:
    """Report one line, where argparse would add a page of usage."""
    raise BadInput(f"{message}; put options such as -m before all overrides; see --help")


def check_overrides(overrides: list[str], sweep: bool = False) -> bool:
    """Raise `BadInput` with every problem in the overrides; in a sweep, those of every job.
    Returns whether they start a sweep.
    """
    problems: dict[str, None] = {}
    grid = _grid(overrides, sweep)
    if local_rank() is not None and grid is not None:
        raise BadInput("torchrun starts one run, not a sweep; for a sweep, python train.py -m")
    listed = [overrides] if grid is None else _listed(grid)
    if len(listed) > MANY:
        log.info("checking the configurations of %d jobs", len(listed))
    for job in listed:
        problems.update(dict.fromkeys(_problems(job)))
    a_job = "hydra.mode=RUN" in overrides  # of a sweep, which was told of its launcher
    of_sweeps = [o for o in overrides if is_tuning(o) or (FOR_SWEEPS.match(o) and not a_job)]
    if of_sweeps and grid is None and not problems:
        problems[f"{of_sweeps[0]}: needs a sweep (-m); this is one run"] = None
    if problems:
        raise BadInput("\n".join(problems))
    return grid is not None


def jobs(overrides: list[str], sweep: bool = False) -> list[list[str]]:
    """The overrides of every job that the command line starts: one run, or the jobs of a sweep.

    Errors: `BadInput` for what cannot be parsed.
    """
    grid = _grid(overrides, sweep)
    return [overrides] if grid is None else _listed(grid)


def _listed(grid: list[Override]) -> list[list[str]]:
    """The jobs of a sweep."""
    try:
        found = [job for batch in BasicSweeper.split_arguments(grid, None) for job in batch]
    except (HydraException, ValueError) as error:  # such as glob(*), or a range with a step of 0
        typed = " ".join(p.input_line for p in grid if p.is_sweep_override())
        raise BadInput(f"{typed}: cannot be listed, give the values: {error}") from None
    if not found:
        raise BadInput("the sweep has no jobs: one of its lists is empty")
    return found


def _grid(overrides: list[str], sweep: bool) -> list[Override] | None:
    """The overrides of a sweep, with those of its experiment; None for one run."""
    unclear = [o for o in overrides if not o.isprintable() or o.lstrip("+~").startswith("=")]
    if unclear:
        rule = "must be key=value, in one line of printable text"
        raise BadInput("\n".join(f"{o!r}: {rule}" for o in unclear))
    parsed = _parsed(overrides)
    for p in parsed:
        if p.key_or_group == "experiment" and p.is_sweep_override():
            raise BadInput(f"{p.input_line}: must be one; attnlab reproduce takes several")
        if isinstance(p.value(), list) and p.key_or_group in ONE_OPTION:
            raise BadInput(f"{p.input_line}: must be one; for a sweep, -m and values with commas")
        if p.key_or_group in REFUSED:
            raise BadInput(f"{p.key_or_group}: {REFUSED[p.key_or_group]}")
    one_run = "hydra.mode=RUN" in overrides  # as in each job of a sweep
    deciding = [p.input_line for p in parsed if p.key_or_group.startswith(DECIDE) and not one_run]
    try:
        hydra = compose_config(deciding).hydra if deciding else None
        mode, grid = (hydra.mode, hydra.sweeper.params or {}) if hydra else (None, {})
    except Exception:  # Hydra's errors share no base class; _problems reports this one
        mode = None
    if mode == RunMode.MULTIRUN:
        sweep = True
        parsed = _parsed([f"{k}={v}" for k, v in grid.items()] + overrides)
    if not sweep:
        return None
    if any(p.key_or_group == "hydra.run.dir" for p in parsed):
        raise BadInput(
            "hydra.run.dir: the runs of a sweep have a folder each; runtime.output_root=<folder> "
            "says where all of them lie"
        )
    return parsed


def is_sweep(overrides: list[str]) -> bool:
    """Whether some of them have several values. Errors: `BadInput` for what cannot be parsed."""
    return any(p.is_sweep_override() for p in _parsed(overrides))


def _parsed(overrides: list[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as error:
        raise BadInput(
            f"{error.override or repr('')}: cannot be parsed; write key=value, "
            "or \"key='value'\" around special characters"
        ) from None


def _problems(overrides: list[str]) -> Iterator[str]:
    """Every problem of one job. After a bad override it continues without that override."""
    set_by = {o: found[1] for o in overrides if (found := re.match(r"[+~]*(\w+)", o))}
    set_by = {o: FOLLOWS[group] for o, group in set_by.items() if group in FOLLOWS}
    for override, why in set_by.items():
        yield f"{override}: {why}"
    overrides = [o for o in overrides if o not in set_by]
    while True:
        try:
            composed = compose_config(overrides)
            values, chosen = plain(composed), composed.hydra.run.dir
            break
        except Exception as error:  # Hydra's errors share no base class
            wrong = culprit(overrides, error)
            if wrong is None:
                yield reason(" ".join(overrides), error)
                return
            overrides = [o for o in overrides if o != wrong]
            yield refused(wrong, error, overrides)
    aside = sections(composed, ["question", "tune"])
    for check_section in (check_question, check_tuning):
        try:
            check_section(values | aside, overrides)
        except BadInput as error:
            yield from str(error).splitlines()
    try:
        cfg = validate(values)
        RunFolder(run_path(cfg, chosen), cfg).check_usable()
    except BadInput as error:
        yield from str(error).splitlines()
