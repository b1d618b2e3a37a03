"""What a report says of a registered question: quoted, answered, and marked where exploratory."""

from attnlab.config.measures import Measure, quantity
from attnlab.report import statistics
from attnlab.report.compare import Arm, Comparison, baseline_of, fingerprints, samples_tested
from attnlab.report.contrasts import Contrast
from attnlab.report.naming import reference
from attnlab.report.questions import Answer
from attnlab.report.rules import RULES, conclusion
from attnlab.report.run_notes import (
    DIFFERENT,
    code_changes,
    differences,
    failures,
    listed,
    repeats,
    selection,
)
from attnlab.report.tables import DASH, Table, effect_text
from attnlab.report.tuning import Tuning
from attnlab.report.tuning_text import edges
from attnlab.report.verdicts import Verdict, verdict

RATES = {"common": "one for all arms", "own": "each arm's own, chosen by its trials"}
MORE = {"better": "larger", "worse": "smaller", "no difference shown": "undecided"}


def tag(answer: Answer) -> str:
    """Registered, or not, or whether that cannot be said here."""
    if answer.deviations:
        return "exploratory"
    known = [answer.registration.precedes(commit) for commit in _commits(answer)]
    return "registered" if all(known) else "registration not verified"


def judge(answer: Answer, contrast: Contrast) -> Verdict | None:
    """Of one contrast; None without paired runs. Of a difference of effects: larger or smaller."""
    effect, registered = contrast.effect, len(answer.question.seeds)
    if effect is None:
        return None
    found = verdict(effect, None, None if contrast.base else answer.question.smallest_effect)
    if effect.n < registered:  # which seeds are missing may depend on what they would say
        reason = f"{found.reason}; but these are {effect.n} of {registered} registered seeds"
        return Verdict("undecided", reason)
    word = MORE.get(found.word, found.word) if contrast.base else found.word
    return Verdict(word, found.reason)


def verdicts(answer: Answer) -> list[tuple[str, str]]:
    """The conclusion where the rule draws one, and every contrast's word and sentence, but for a
    rule that is about all of them together.
    """
    said = conclusion(answer)
    found = [(tag(answer), said)] if said else []
    if answer.question.id in RULES:
        return found
    for contrast in answer.contrasts:
        if judged := judge(answer, contrast):
            word, reason = judged.word, judged.reason
        else:
            word, reason = "no verdict", _why_none(answer)
        found.append((word, f"{answer.name(contrast)}: {reason}"))
    return found


def _why_none(answer: Answer) -> str:
    return DIFFERENT if len(fingerprints(answer.runs)) > 1 else "no paired runs"


def table(answer: Answer) -> Table:
    """A row for every registered contrast, with runs or without."""
    level = next((c.effect.level for c in answer.contrasts if c.effect), None)
    shown = f" ({100 * level:.4g} % interval)" if level else ""
    columns = {
        "setting": "text",
        "effect": "text",
        f"mean over seeds{shown}": "number",
        "verdict": "text",
        "n": "number",
    }
    return Table(columns, [_row(answer, contrast) for contrast in answer.contrasts])


def _row(answer: Answer, contrast: Contrast) -> list[str]:
    effect, judged = contrast.effect, judge(answer, contrast)
    name = contrast.setting or "as configured"
    if effect is None or judged is None:
        return [name, contrast.label, DASH, DASH, "0"]
    return [name, contrast.label, effect_text(effect), judged.word, str(effect.n)]


def quotation(answer: Answer) -> list[tuple[str, str]]:
    """What was registered, in its own words: heading and text."""
    question = answer.question
    seeds = ", ".join(map(str, question.seeds))
    tuning = ", ".join(map(str, question.tuning_seeds)) or "none"
    smallest = quantity(question.smallest_effect, question.measure.unit)
    return [
        ("Question", question.text),
        ("Rule", question.rule),
        ("Arms", f"{', '.join(question.arms)}; compared with {', '.join(question.controls)}"),
        ("Seeds", f"{seeds}; for tuning: {tuning}"),
        ("Measure", f"{question.primary}; smallest effect of interest {smallest}"),
        ("Learning rate", RATES[question.learning_rate]),
        ("Registered", _when(answer)),
    ]


def _when(answer: Answer) -> str:
    asked = answer.registration
    file = f"configs/experiment/{answer.experiment}.yaml"
    if asked.pending:
        return f"the question in {file} is not committed"
    if asked.commit is None:
        return f"{file}; git does not say when"
    known = [asked.precedes(commit) for commit in _commits(answer)]
    old, unknown = known.count(False), known.count(None)
    said = f"commit {asked.commit[:10]} of {asked.date} last changed the question in {file}"
    if old:
        said += f"; {old} of {len(known)} commits of the runs did not have it yet"
    if unknown:
        said += f"; {unknown} of {len(known)} commits of the runs are not known here"
    if not old and not unknown:
        said += "; it is part of every run's commit"
    if dirty := sum(any(start.get("git_dirty") for start in run.starts) for run in answer.runs):
        said += f"; {dirty} of {len(answer.runs)} runs were made with uncommitted changes"
    return said


def _commits(answer: Answer) -> list[str]:
    return sorted({str(start.get("git_commit")) for run in answer.runs for start in run.starts})


def notes(answer: Answer) -> list[str]:
    """What a reader must know of the answer, in sentences."""
    said = []
    if answer.deviations:
        reasons = "; ".join(answer.deviations)
        said.append(f"WARNING: exploratory, because this is not what was registered: {reasons}.")
    if answer.missing:
        of = len(answer.runs) + answer.missing
        ended = f"; {len(answer.failed)} ended without one" if answer.failed else ""
        said.append(f"{len(answer.runs)} of {of} registered runs have a result{ended}.")
    said += failures(answer.failed)
    said += repeats(answer.repeated)
    said += code_changes(answer.runs)
    said += selection(answer.place)
    said += differences({run.config["model.name"]: run.config for run in answer.runs})
    if answer.tunings:
        said.append(
            "The rates are those that the tuning seeds chose. The intervals take them as given: "
            "that so few trials may choose a rate that is not the best one is not in them."
        )
    for tuning in answer.tunings:
        said += edges(tuning, f"in {tuning.title}, " if len(answer.tunings) > 1 else "")
    if answer.others:
        arms = sorted({run.config["model.name"] for run in answer.others})
        seeds = sorted({run.config["seed"] for run in answer.others})
        said.append(
            f"Exploratory, and not counted here: {len(answer.others)} more runs of the same "
            f"configuration, which differ from the registered ones by arm, setting or seed (arms "
            f"{', '.join(arms)}; seeds {listed(seeds)})."
        )
    said.append(
        "Effects are paired by seed; positive is better. All registered intervals are "
        "simultaneous 95 % intervals. An effect is called equivalent if its whole interval is "
        "nearer to 0 than the smallest effect of interest, also where it excludes 0: two "
        "one-sided tests, each at half of the interval's error."
    )
    return said + planning(answer)


def planning(answer: Answer) -> list[str]:
    """How many seeds the spread that was seen asks for, of the effects that may be equivalent."""
    of_arms = [c.effect for c in answer.contrasts if c.effect and not c.base]
    spread = [effect for effect in of_arms if effect.sd is not None]
    if not spread:
        return []
    widest = max(spread, key=lambda effect: effect.sd)
    smallest = answer.question.smallest_effect
    samples = samples_tested(answer.runs)
    floor = statistics.sampling_error(0, samples) if samples else 0.0  # of equal arms
    between = (widest.sd, *statistics.sd_interval(widest.sd, widest.n))
    needed = [statistics.planned_seeds(s, smallest, widest.level, floor) for s in between]
    n, least, most = (f"{n:,}" if n else f"more than {statistics.MAX_SEEDS:,}" for n in needed)
    roughly = ""
    if least != most:
        roughly = (
            f" {widest.n} seeds know a spread only roughly: over its 95 % interval the number "
            f"runs from {least} to {most}."
        )
    sd = quantity(widest.sd, widest.unit, ".2g")
    few = needed[0] is None and statistics.planned_seeds(widest.sd, smallest, widest.level)
    bound = ", and with so few test samples" if few else ""
    return [
        f"Paired effects spread by up to {sd} (standard deviation over {widest.n} seeds). At "
        f"that spread{bound}, {n} seeds would be needed to call equal arms equivalent within "
        f"{quantity(smallest, widest.unit)} with a probability of 90 %.{roughly}"
    ]


def marks(comparison: Comparison, found: list[Answer]) -> str:
    """Which question registered a comparison's runs; `exploratory` if none did."""
    runs = {run.folder for run in comparison.runs}
    alike = (a for a in found if a.question.measure is comparison.measure)
    asked = [answer for answer in alike if runs & {run.folder for run in answer.runs}]
    said = []
    counted = {run.folder for answer in asked for run in answer.runs}
    finished = {run.folder for run in comparison.runs if run.value is not None}
    part = "" if finished <= counted else "in part "
    for word in ("registered", "registration not verified"):
        if names := [answer.experiment for answer in asked if tag(answer) == word]:
            said.append(f"{part}{word}: {', '.join(names)}")
    return ", ".join(said) or "exploratory"


def registered(comparison: Comparison, found: list[Answer], measure: Measure) -> dict[str, str]:
    """Label of an arm -> the question that registers its effect over the baseline: its verdict is
    the one at the question's level, and no second one is given.
    """
    covered: dict[str, str] = {}
    base = comparison.baseline
    for answer in _against(base, measure, found):
        # at own rates the baseline of the answer may have another rate than here
        if not _counts(answer, base) and answer.question.learning_rate == "common":
            continue
        for arm in comparison.judged:
            treated = arm.own["model.name"] in answer.question.treated
            published = reference(arm.config)
            if published and published.exact and not answer.missing:
                continue  # the comparison judges it against that, at the same level
            if treated and _counts(answer, arm):
                covered[arm.label] = answer.experiment
    return covered


def registered_at_own_rates(tuning: Tuning, found: list[Answer]) -> dict[str, str]:
    """The same of the effects at each arm's own rate."""
    base = baseline_of([tuned.arm for tuned in tuning.arms])
    return {
        tuned.arm.label: answer.experiment
        for answer in _against(base, tuning.measure, found)
        if any(other is tuning for other in answer.tunings)
        for tuned in tuning.arms
        if tuned.arm.own["model.name"] in answer.question.treated
        if tuned.own and tuned.own.rate in tuned.fresh
        if _counts(answer, tuned.fresh[tuned.own.rate])
    }


def _against(base: Arm | None, measure: Measure, found: list[Answer]) -> list[Answer]:
    """The answers as registered that compare with this arm in this measure."""
    if base is None:
        return []
    asked = [a for a in found if not a.deviations and a.question.measure is measure]
    return [a for a in asked if base.own["model.name"] in a.question.controls]


def _counts(answer: Answer, arm: Arm) -> bool:
    """Whether runs of the arm count in the answer."""
    counted = {run.folder for run in answer.runs}
    return any(run.folder in counted for run in arm.counted.values())
