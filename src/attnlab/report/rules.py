"""What the rules of registered questions ask beyond how two arms compare."""

from attnlab.report.questions import Answer
from attnlab.report.statistics import Effect, equivalent

NEEDED = 3  # of the four settings beside the first


def controls(answer: Answer) -> str:
    """The rule of experiment=controls, as it was registered:

    Effects are paired by seed, in percent of perplexity, at one common learning rate; intervals
    hold together with 95 %. The scores explain nothing beyond the removed saturation if, as
    published, neural_d2 is better than dot_product, neural_d2 and uniform are equivalent within
    0.5 %, and in at least three of the four other settings neural_d2 and dot_product are
    equivalent within 0.5 %. Saturation explains part of the gain if the effect of neural_d2 over
    dot_product is smaller than as published, by an interval that excludes 0, in at least three of
    the four other settings. The scores have a gain of their own where neural_d2 is better than
    uniform by more than 0.5 %. Anything else is undecided.
    """
    smallest = answer.question.smallest_effect
    settings = list(dict.fromkeys(contrast.setting for contrast in answer.contrasts))
    first, others = settings[0], settings[1:]

    def over(control: str, setting: str, base: str = "") -> Effect:
        return answer.of("neural_d2", control, setting, base)

    wins = (over("dot_product", first).low or 0) > 0
    as_uniform = equivalent(over("uniform", first), smallest)
    alike = sum(equivalent(over("dot_product", s), smallest) for s in others)
    smaller = sum((over("dot_product", s, first).high or 0) < 0 for s in others)
    own = [s for s in settings if (over("uniform", s).low or 0) > smallest]
    said = []
    if wins and as_uniform and alike >= NEEDED:
        said.append(
            "the scores explain nothing beyond the removed saturation: as published, neural_d2 is "
            "better than dot_product and equivalent to uniform attention, and in "
            f"{alike} of {len(others)} other settings it is equivalent to dot_product"
        )
    if smaller >= NEEDED:
        said.append(
            "saturation explains part of the gain: over dot_product it is smaller than as "
            f"published in {smaller} of {len(others)} other settings"
        )
    if own:
        said.append(
            f"the scores have a gain of their own over uniform attention ({', '.join(own)})"
        )
    if not said:
        return "Undecided: the intervals meet none of the conditions of the rule."
    sentence = "; ".join(said)
    return f"{sentence[0].upper()}{sentence[1:]}."


def saturation(answer: Answer) -> str:
    """Saturation explains part of the gain if the effect over dot_product is smaller with the
    textbook's embedding than as published, by an interval that excludes 0.
    """
    published, textbook = dict.fromkeys(contrast.setting for contrast in answer.contrasts)
    less = answer.of("neural_d2", "dot_product", textbook, published)
    if (less.high or 0) < 0:
        return (
            "Saturation explains part of the gain: over dot_product it is smaller with "
            f"{textbook} than with {published}."
        )
    return "That saturation explains part of the gain is undecided."


def temperature(answer: Answer) -> str:
    """Of expressive_fair: The temperature helps if expressive_tempered is better or equivalent and
    expressive is worse.

    Of ladder_fair: The temperature helps where expressive_tempered is equivalent or better and
    expressive is worse.
    """
    helps, smallest = [], answer.question.smallest_effect
    settings = list(dict.fromkeys(contrast.setting for contrast in answer.contrasts))
    for setting in settings:
        tempered = answer.of("expressive_tempered", "dot_product", setting)
        worse = (answer.of("expressive", "dot_product", setting).high or 0) < 0
        if worse and (equivalent(tempered, smallest) or (tempered.low or 0) > 0):
            helps.append(setting)
    where = f" with {', '.join(helps)}" * bool(settings[1:])
    return (
        f"The temperature helps{where}." if helps else "That the temperature helps is undecided."
    )


def positions(answer: Answer) -> str:
    """Positions explain part of an arm's distance to the dot product if, with sinusoidal positions
    or with ALiBi, its effect is larger than with rotary ones by an interval that excludes 0.
    """
    larger: dict[str, list[str]] = {}
    for contrast in answer.contrasts:
        if contrast.base and (contrast.effect.low or 0) > 0:
            larger.setdefault(contrast.arm, []).append(contrast.setting)
    if not larger:
        return "That positions explain part of a distance to the dot product is undecided."
    arms = "; ".join(f"of {arm} ({', '.join(settings)})" for arm, settings in larger.items())
    return f"Positions explain part of the distance to the dot product {arms}."


RULES = {"controls": controls}  # by the question's id: the whole rule
CLAUSES = {  # what the rule says in the end, beside the verdicts on the single effects
    "controls_fair": saturation,
    "controls_wide": saturation,
    "expressive_fair": temperature,
    "ladder_fair": temperature,
    "recall_fair": positions,
}


def conclusion(answer: Answer) -> str:
    """What the registered rule makes of the runs, in one sentence; empty for a question whose rule
    is that each verdict speaks for itself.
    """
    name = answer.question.id
    rule = RULES.get(name) or CLAUSES.get(name)
    if rule is None:
        return ""
    if answer.missing:
        of = len(answer.runs) + answer.missing
        return f"Undecided: {len(answer.runs)} of {of} registered runs have a result."
    if any(contrast.effect is None for contrast in answer.contrasts):
        return "Undecided: the runs used different data."
    return rule(answer)
