"""Registered questions, and what the runs below a folder answer.

Only what was registered counts: the question's seeds, arms and settings, at the configuration that
its experiment has, by runs of a commit that had the question. Everything else is exploratory, and
is called so.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from attnlab.config.compose import CONFIGS, completed, compose_config, flatten
from attnlab.config.messages import validate
from attnlab.config.question import Question, questions
from attnlab.config.schema import can_change_result
from attnlab.errors import BadInput
from attnlab.report import naming
from attnlab.report.collect import Run
from attnlab.report.compare import shared
from attnlab.report.contrasts import Contrast, contrasts
from attnlab.report.naming import arm_changes, typed
from attnlab.report.registration import Registration, configs_at, registration
from attnlab.report.statistics import Effect
from attnlab.report.tuning import RATE, Tuning

# Overrides that choose data of a kind, whichever: for runs on data without a YAML.
ANY = {
    "text": ("data=text", "data.path=any"),
    "image": ("data=images", "data.path=any"),
    "symbols": ("data=nt",),
    "translation": ("data=translation", "data.path=any"),
}
MOST_NAMED = 4  # keys in a sentence
VERSION = "code_version"


@dataclass
class Answer:
    """A question at one place: a data set, a scale, a protocol.

    place: what all its runs agree in. deviations: why this is not what was registered; empty if it
    is. runs: the finished ones that count. missing: how many registered ones do not yet; failed:
    those of them that have ended. repeated: finished ones whose seed another run of `runs` has.
    others: runs of the same place with other seeds or arms. tunings: those that chose the arms'
    learning rates.
    """

    experiment: str
    question: Question
    registration: Registration
    place: dict[str, Any]
    deviations: list[str]
    contrasts: list[Contrast]
    runs: list[Run]
    missing: int
    failed: list[Run] = field(default_factory=list)
    repeated: list[Run] = field(default_factory=list)
    others: list[Run] = field(default_factory=list)
    tunings: list[Tuning] = field(default_factory=list)
    title: str = ""
    slug: str = ""

    def name(self, contrast: Contrast) -> str:
        """Where it stands alone: with its setting, if there are several."""
        settings = {other.setting for other in self.contrasts}
        return f"{contrast.setting}: {contrast.label}" if len(settings) > 1 else contrast.label

    def of(self, arm: str, control: str, setting: str, base: str = "") -> Effect | None:
        """The effect of a contrast."""
        key = (arm, control, setting, base)
        return next(
            c.effect for c in self.contrasts if (c.arm, c.control, c.setting, c.base) == key
        )


def answers(runs: Iterable[Run], tunings: Iterable[Tuning] = ()) -> list[Answer]:
    """What readable runs answer: every question that they are meant for (`_asked`). Of several
    that ask the same of other data, the one that was registered for this data.

    runs: without trials, at one learning rate for all arms. tunings: with the arms' own ones,
    which answer the questions that are registered so.
    """
    readable = [run for run in runs if run.status != "unreadable"]
    tunings = list(tunings)
    found: dict[str, Answer] = {}
    for experiment, question in questions().items():
        kind = _composed(experiment)["data.kind"]
        of_kind = [run for run in readable if run.config["data.kind"] == kind]
        places = list(_by_place(question, of_kind).items())
        tuned: set[str] = set()  # places whose arms have rates of their own: others do not count
        if question.learning_rate == "own":
            at_own = (run for tuning in tunings for run in tuning.at_own_rates)
            own = _by_place(question, (r for r in at_own if r.config["data.kind"] == kind), True)
            tuned = {place for place, members in own.items() if _compares(question, members)}
            places = [*own.items(), *places]
        for place, members in places:
            at_any_rate = naming.frozen(_place(members[0].config, question, True))
            replaced = place not in tuned and at_any_rate in tuned
            if replaced or not _compares(question, members):
                continue
            answer = _answer(experiment, question, members, _chosen(question, members, tunings))
            key = naming.frozen({"arms": question.arms, "settings": question.settings, "": place})
            known = found.get(key)
            if _asked(answer) and (not known or len(answer.deviations) < len(known.deviations)):
                found[key] = answer
    return _titled(list(found.values()))


def _compares(question: Question, runs: list[Run]) -> bool:
    """Whether there are runs of an arm and of a control."""
    arms = {run.config["model.name"] for run in runs}
    return bool(arms & set(question.treated) and arms & set(question.controls))


def _titled(found: list[Answer]) -> list[Answer]:
    """With titles that tell answers of one question apart."""
    for experiment in {answer.experiment for answer in found}:
        alike = [answer for answer in found if answer.experiment == experiment]
        for answer, title in zip(alike, naming.titles([a.place for a in alike]), strict=True):
            answer.title = f"{experiment}: {title}"
    for answer, short in zip(found, naming.slugs(a.title for a in found), strict=True):
        answer.slug = short
    return found


def _asked(answer: Answer) -> bool:
    """Whether the runs are meant for the question: some of an arm and some of a control. Where
    they are not as registered, it takes runs of every arm, or any sweep would seem to ask it.
    """
    if answer.deviations:
        return {run.config["model.name"] for run in answer.runs} == set(answer.question.arms)
    return _compares(answer.question, answer.runs)


def _by_place(
    question: Question, runs: Iterable[Run], at_own_rates: bool = False
) -> dict[str, list[Run]]:
    places: dict[str, list[Run]] = {}
    for run in runs:
        place = naming.frozen(_place(run.config, question, at_own_rates))
        places.setdefault(place, []).append(run)
    return places


def _place(config: dict[str, Any], question: Question, at_own_rates: bool) -> dict[str, Any]:
    """What all runs of an answer agree in."""
    free = question.values[0].keys() | ({RATE} if at_own_rates else set())
    return {k: v for k, v in shared(config).items() if k not in free and can_change_result(k)}


def _chosen(question: Question, members: list[Run], tunings: list[Tuning]) -> list[Tuning]:
    """The tunings that chose the rates of these runs, where the question asks for that."""
    folders = {run.folder for run in members}
    own = tunings if question.learning_rate == "own" else []
    return [t for t in own if folders & {run.folder for run in t.at_own_rates}]


def _untuned(question: Question, tunings: list[Tuning]) -> Iterator[str]:
    """Where the learning rates are not those that the registered trials choose."""
    if question.learning_rate == "common":
        return
    if not tunings:
        yield "one learning rate for all arms instead of each arm's own (tune=lr)"
    for other in (t.seeds for t in tunings if t.seeds != sorted(question.tuning_seeds)):
        yield f"tune.seeds={other} instead of {question.tuning_seeds}"


def _answer(
    experiment: str, question: Question, members: list[Run], tunings: list[Tuning]
) -> Answer:
    names = [_setting_name(question, values) for values in question.values]
    cells: dict[tuple[str, str], dict[int, Run]] = {}
    others, repeated = [], []
    ended: dict[tuple[str, str, int], Run] = {}  # without a number, one of each seed
    for run in members:
        setting = _setting(run.config, question)
        arm = run.config["model.name"]
        as_shipped = arm in question.arms and not arm_changes(run.config)
        if setting is None or not as_shipped or run.config["seed"] not in question.seeds:
            others.append(run)
        elif run.tested(question.measure) is not None:
            # of several with one seed the first by path counts
            seeds = cells.setdefault((names[setting], arm), {})
            if seeds.setdefault(run.config["seed"], run) is not run:
                repeated.append(run)
        elif run.status in ("failed", "finished"):  # or its result is not a number
            ended.setdefault((names[setting], arm, run.config["seed"]), run)
    counted = [run for found in cells.values() for run in found.values()]
    place = _place(members[0].config, question, at_own_rates=bool(tunings))
    asked = registration(experiment, question)
    return Answer(
        experiment=experiment,
        question=question,
        registration=asked,
        place=place,
        deviations=[
            *dict.fromkeys(
                said
                for configs in sorted({configs_at(_commit(run)) for run in counted} or {CONFIGS})
                for said in _deviations(experiment, question, place, configs)
            ),
            *_untuned(question, tunings),
            *_too_early(asked, counted),
        ],
        contrasts=list(contrasts(question, names, cells)),
        runs=counted,
        missing=len(names) * len(question.arms) * len(question.seeds) - len(counted),
        failed=[r for (*cell, seed), r in ended.items() if seed not in cells.get(tuple(cell), {})],
        repeated=repeated,
        others=others,
        tunings=tunings,
    )


def _setting(config: dict[str, Any], question: Question) -> int | None:
    """Which of the question's settings a run has."""
    have = {key: config.get(key) for key in question.values[0]}
    return question.values.index(have) if have in question.values else None


def _setting_name(question: Question, values: dict[str, Any]) -> str:
    """Its name in configs/setting, where the question is about all that stands there; else its
    values.
    """
    files = sorted((CONFIGS / "setting").glob("*.yaml"))
    changes = {
        file.stem: {f"arch.{k}": v for k, v in (yaml.safe_load(file.read_text()) or {}).items()}
        for file in files
    }
    if values.keys() == {key for change in changes.values() for key in change}:
        for name, change in changes.items():
            if question.values[0] | change == values:
                return name
    changed = {k: v for k, v in values.items() if v != question.values[0][k]}
    return " ".join(f"{key}={typed(value)}" for key, value in (changed or values).items())


def _commit(run: Run) -> str:
    """That of its first start."""
    return str(run.starts[0].get("git_commit"))


def _deviations(
    experiment: str, question: Question, place: dict[str, Any], configs: Path
) -> Iterator[str]:
    """Where a place is not what its experiment was at this scale, by the configurations at the
    runs' commit. Scale and protocol are stated with every answer and are free.
    """
    here = (f"scale={place['scale']}", f"protocol={place['protocol']}")
    name = place["data.name"]
    generic = name in ("text", "images")  # a folder may be called so
    shipped = not generic and (CONFIGS / "data" / f"{name}.yaml").is_file()
    choice = (f"data={name}",) if shipped else ANY[place["data.kind"]]
    try:
        data = _composed(experiment, *here, configs=configs)["data.name"]
        if name not in (data, *question.data):
            yield f"data={name} instead of {' or '.join(question.data) or data}"
        composed = _composed(experiment, *here, *choice, configs=configs)
    except (BadInput, HydraException, OmegaConfBaseException):
        # it sets keys that this data does not have or allow
        if configs != CONFIGS:  # or was not there yet, or has changed in schema since
            yield from _deviations(experiment, question, place, CONFIGS)
            return
        yield f"experiment={experiment} cannot have {' '.join((*here, *choice))}"
        return
    expected = _place(composed, question, at_own_rates=RATE not in place)
    if not shipped:  # there is nothing that its keys could be held to
        expected |= {key: place[key] for key in place if key.startswith("data.")}
    # what an earlier code version answers was registered as well
    keys = [k for k in expected | place if expected.get(k) != place.get(k) and k != VERSION]
    for key in keys[:MOST_NAMED]:
        yield f"{key}={typed(place.get(key))} instead of {typed(expected.get(key))}"
    if more := len(keys[MOST_NAMED:]):
        yield f"{more} more keys differ" if more > 1 else "one more key differs"


@functools.cache
def _composed(experiment: str, *overrides: str, configs: Path = CONFIGS) -> dict[str, Any]:
    """The configuration of an experiment's run, with dotted keys."""
    composed = compose_config([f"experiment={experiment}", *overrides], configs=configs)
    return flatten(validate(completed(composed)).model_dump())


def _too_early(asked: Registration, counted: list[Run]) -> Iterator[str]:
    made = [{str(start.get("git_commit")) for start in run.starts} for run in counted]
    commits = set().union(*made)
    if early := {commit for commit in commits if asked.precedes(commit) is False}:
        runs = sum(bool(found & early) for found in made)
        of = f"{runs} of {len(counted)} runs"
        if asked.pending:
            yield f"the question is not committed ({of})"
        else:
            yield f"the question was changed after the commit of {of}"
