"""Experiments of the paper from one command: estimate, runs, report.

    attnlab reproduce table1 table3               what the published size needs here
    attnlab reproduce table1 yes=true              and run it
    attnlab reproduce scale=mini table1 data=wikitext2 table3

Names are files of configs/experiment; overrides behind a name are for that experiment, those
before the first name for all. First the arms are compared, which may differ in attention only;
then the data is prepared, and two steps of every kind of run are measured. What takes more than an
hour needs yes=true. Started again, it skips finished runs and resumes the others. An ablation's
baseline, dot_product, runs with it.
"""

import sys
from pathlib import Path

from attnlab import cli
from attnlab.commands.report import reporter
from attnlab.errors import BadInput

FREE_HOURS = 1.0
YES = ("yes=true", "yes=yes")
ELSEWHERE = ("launcher=", "hydra.launcher", "+hydra.launcher", "hydra/launcher=", "tune=", "tune.")


def main(*words: str) -> None:
    """Estimate, run, report."""
    for word in words:
        if word.startswith(ELSEWHERE):
            raise BadInput(
                f"{word}: reproduce runs its jobs here, one after the other; "
                "train.py experiment=<name> takes it"
            )
    typed = overrides([word for word in words if word.lower() not in YES])
    problems: list[str] = []
    for job in typed:
        try:
            cli.check_overrides(job)
        except BadInput as error:
            problems += str(error).splitlines()
    if problems:
        raise BadInput("\n".join(dict.fromkeys(problems)))
    report = reporter()
    from attnlab.sweeps.estimate import estimate
    from attnlab.sweeps.jobs import compose_jobs, with_baselines
    from attnlab.sweeps.local import run_jobs
    from attnlab.sweeps.pairing import check_arms

    jobs = with_baselines(compose_jobs(typed))
    check_arms(jobs)
    need = estimate(jobs)
    print(need.table)
    if not need.possible:
        raise BadInput("not all of it can run on this machine; see the table")
    if need.hours > FREE_HOURS and not {word.lower() for word in words} & set(YES):
        raise BadInput(f"{need.hours:,.1f} hours: add {YES[0]} to start")
    code = run_jobs(jobs)
    if code < 128:  # no signal
        for root in dict.fromkeys(Path(job.cfg.runtime.output_root) for job in jobs):
            report(root, root / "report")
    sys.exit(code)


def overrides(words: list[str]) -> list[list[str]]:
    """Those of every job of every experiment named."""
    common: list[str] = []
    experiments: list[list[str]] = []
    for word in words:
        if "=" not in word:
            experiments.append([f"experiment={word}", *common])
        else:
            (experiments[-1] if experiments else common).append(word)
    if not experiments:
        raise BadInput("no experiment named; see configs/experiment")
    return [[*job, "hydra.mode=RUN"] for words in experiments for job in cli.jobs(words)]
