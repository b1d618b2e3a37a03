"""The report's statistics against scipy, worked numbers, and what chance alone would give."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from attnlab.config.measures import ACCURACY, PERPLEXITY
from attnlab.report import published
from attnlab.report.statistics import (
    Effect,
    compare,
    effect_of,
    equivalent,
    holm,
    paired_effect,
    planned_seeds,
    sampling_error,
    summarize,
)
from attnlab.report.verdicts import verdict

DOT = {0: 21.0, 1: 20.4, 2: 20.9, 3: 21.3, 4: 20.7}
ARM = {0: 20.5, 1: 20.1, 2: 20.3, 3: 20.6, 4: 20.5}

seeds = st.integers(0, 99)
perplexities = st.dictionaries(seeds, st.floats(5, 200), min_size=2, max_size=8)
pairs = st.lists(st.tuples(st.floats(5, 200), st.floats(5, 200)), min_size=2, max_size=8)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def of(*effects: float, level: float = 0.95) -> Effect:
    """An effect in points with these values for seeds 0, 1, ..."""
    arm = {seed: value / 100 for seed, value in enumerate(effects)}
    return paired_effect(arm, dict.fromkeys(arm, 0.0), ACCURACY, level)


def with_interval(low: float, high: float, n: int = 3) -> Effect:
    """An effect whose 95 % interval is this one."""
    half = stats.t.interval(0.95, n - 1, scale=1 / math.sqrt(n))[1]
    sd = (high - low) / 2 / half
    return Effect(n, (low + high) / 2, sd, low, high, unit="%", level=0.95, p=0.5, p_holm=0.5)


# Numbers


@pytest.mark.parametrize("level", [0.95, 0.99])
def test_summary_is_scipys(level):
    values = [20.1, 20.4, 19.7, 20.0]
    s = summarize(values, level)
    low, high = stats.t.interval(level, 3, np.mean(values), stats.sem(values))
    assert (s.n, s.mean) == (4, pytest.approx(20.05))
    assert s.sd == pytest.approx(np.std(values, ddof=1))
    assert (s.low, s.high) == (pytest.approx(low), pytest.approx(high))


def test_single_run_has_no_spread():
    s = summarize([20.0])
    assert (s.n, s.mean, s.sd, s.low, s.high) == (1, 20.0, None, None, None)


@pytest.mark.parametrize("values", [[], [20.0, math.nan], [math.inf]])
def test_no_summary_of_nothing_or_of_a_diverged_run(values):
    with pytest.raises(ValueError):
        summarize(values)


def test_accuracy_effect_is_the_paired_t_test_in_points():
    dot = {0: 0.700, 1: 0.712, 2: 0.694}
    arm = {0: 0.731, 1: 0.738, 2: 0.729}
    effect = paired_effect(arm, dot, ACCURACY)
    test = stats.ttest_rel(list(arm.values()), list(dot.values()))
    assert (effect.n, effect.unit) == (3, "points")
    assert effect.mean == pytest.approx((3.1 + 2.6 + 3.5) / 3)
    assert effect.p == effect.p_holm == pytest.approx(test.pvalue)
    low, high = test.confidence_interval(0.95)
    assert (effect.low, effect.high) == (pytest.approx(100 * low), pytest.approx(100 * high))


def test_perplexity_effect_is_the_reduction_in_percent_per_seed():
    effect = paired_effect(ARM, DOT, PERPLEXITY, level=0.99)
    per_seed = [100 * (1 - ARM[seed] / DOT[seed]) for seed in DOT]
    test = stats.ttest_1samp(per_seed, 0)
    assert (effect.mean, effect.unit) == (pytest.approx(np.mean(per_seed)), "%")
    assert effect.p == pytest.approx(test.pvalue)
    assert (effect.low, effect.high) == pytest.approx(tuple(test.confidence_interval(0.99)))
    assert paired_effect({0: 19.562}, {0: 20.0}, PERPLEXITY).mean == pytest.approx(2.19)


def test_a_worse_arm_is_negative_in_both_metrics():
    assert paired_effect({0: 30.0}, {0: 20.0}, PERPLEXITY).mean == pytest.approx(-50)
    assert paired_effect({0: 0.5}, {0: 0.6}, ACCURACY).mean == pytest.approx(-10)


def test_no_common_seed_is_an_error():
    with pytest.raises(ValueError):
        paired_effect({0: 20.0}, {1: 20.0}, PERPLEXITY)


@pytest.mark.parametrize("measure", [PERPLEXITY, ACCURACY], ids=lambda measure: measure.name)
@pytest.mark.parametrize("value", [0.0, 0.03, -0.03])
def test_a_spread_of_zero_decides_nothing_where_its_error_is_unknown(measure, value):
    """0.61 - 0.60 and 0.71 - 0.70 differ in the last bit only."""
    dot = {0: 0.60, 1: 0.70, 2: 0.65}
    change = (lambda v: v + value) if measure is ACCURACY else (lambda v: v * (1 - value))
    effect = paired_effect({seed: change(v) for seed, v in dot.items()}, dot, measure)
    assert effect.mean == pytest.approx(100 * value)
    assert (effect.sd, effect.low, effect.high, effect.p) == (None,) * 4
    for known in (None, 2.19):
        found = verdict(effect, known)
        assert (found.word, found.needed) == ("undecided", None)
        assert "the same on all 3 seeds" in found.reason


def test_two_images_of_359_on_two_seeds_decide_nothing():
    """Standard error sqrt(2) / 359, as McNemar's test has it, times t = 12.706 of one degree."""
    dot = {0: 19 / 359, 1: 45 / 359}
    arm = {seed: value + 2 / 359 for seed, value in dot.items()}
    effect = paired_effect(arm, dot, ACCURACY, samples=359)
    half = 100 * math.sqrt(2) / 359 * 12.7062
    assert (effect.low, effect.high) == pytest.approx((effect.mean - half, effect.mean + half))
    assert effect.p > 0.1 and verdict(effect, None).word == "no difference shown"
    assert "widened for the number of test samples" in verdict(effect, None).reason


def test_more_seeds_do_not_make_up_for_few_test_samples():
    """Three images of 300, the same on a thousand seeds: McNemar's p is 0.083."""
    arm = dict.fromkeys(range(1000), 3 / 300)
    effect = paired_effect(arm, dict.fromkeys(arm, 0.0), ACCURACY, samples=300)
    assert effect.p == pytest.approx(2 * stats.norm.sf(math.sqrt(3)), rel=0.01)
    assert verdict(effect, None).needed is None


def test_a_spread_wider_than_the_floor_stays_as_it_is():
    values = (1.0, 2.0, 4.0)
    arm = {seed: value / 100 for seed, value in enumerate(values)}
    zero = dict.fromkeys(arm, 0.0)
    effect = paired_effect(arm, zero, ACCURACY, samples=10_000)
    assert (effect.low, effect.high, effect.p) == (
        of(*values).low,
        of(*values).high,
        of(*values).p,
    )


def test_accuracy_effects_stay_within_100_points():
    assert of(90.0, 99.0).high == 100 and of(-90.0, -99.0).low == -100


def test_drawing_test_samples_varies_an_effect_by_no_less_than_the_floor():
    """Arms that differ in as few answers as their effect allows, on test splits of 200."""
    rng = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.1):
        effects = 100 * rng.binomial(200, share, 4000) / 200
        assert sampling_error(100 * share, 200) >= 0.95 * np.std(effects)


# Properties


@settings(max_examples=100)
@given(pairs, st.randoms())
def test_order_of_seeds_does_not_matter(values, random):
    arm, dot = ({s: v[i] for s, v in enumerate(values)} for i in (0, 1))
    shuffled = list(arm.items())
    random.shuffle(shuffled)
    assert paired_effect(dict(shuffled), dot, PERPLEXITY) == paired_effect(arm, dot, PERPLEXITY)


@settings(max_examples=100)
@given(perplexities, perplexities)
def test_unpaired_seeds_are_ignored(arm, dot):
    arm, dot = {**arm, 0: 20.0, 100: 30.0}, {**dot, 0: 21.0, 101: 1.0}
    common = arm.keys() & dot.keys()
    only = [{seed: runs[seed] for seed in common} for runs in (arm, dot)]
    assert paired_effect(arm, dot, PERPLEXITY) == paired_effect(*only, PERPLEXITY)


@settings(max_examples=100)
@given(pairs, st.floats(0.1, 10))
def test_perplexity_of_another_tokenizer_is_the_same_effect(values, factor):
    """All perplexities of a comparison times one factor: no arm gained anything."""
    arm, dot = ({s: v[i] for s, v in enumerate(values)} for i in (0, 1))
    scaled = [{s: factor * v for s, v in runs.items()} for runs in (arm, dot)]
    a, b = paired_effect(arm, dot, PERPLEXITY), paired_effect(*scaled, PERPLEXITY)
    assert (b.mean, b.low, b.high) == pytest.approx((a.mean, a.low, a.high), abs=1e-6)


@settings(max_examples=100)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(-5, 5))
def test_a_shift_of_all_effects_moves_the_interval_only(effects, shift):
    a, b = of(*effects), of(*[e + shift for e in effects])
    assume(a.sd is not None and b.sd is not None)
    assert b.sd == pytest.approx(a.sd, abs=1e-9)
    assert (b.low, b.high) == pytest.approx((a.low + shift, a.high + shift), abs=1e-7)


@settings(max_examples=100)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_exchanging_the_arms_exchanges_the_sign(effects):
    a, b = of(*effects), of(*[-e for e in effects])
    assume(a.sd is not None)
    assert (b.mean, b.low, b.high, b.p) == pytest.approx((-a.mean, -a.high, -a.low, a.p))


@settings(max_examples=100)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(0.5, 0.99))
def test_interval_excludes_zero_exactly_when_p_is_below_its_level(effects, level):
    effect = of(*effects, level=level)
    assume(effect.sd is not None)
    if not math.isclose(effect.p, 1 - level, rel_tol=1e-6):
        assert (effect.low > 0 or effect.high < 0) == (effect.p < 1 - level)


# Several arms


def test_holm_worked_by_hand():
    """The smallest times 3, the next times 2; the last would be 0.04 and is raised to 0.06."""
    adjusted = holm({"b": 0.04, "a": 0.01, "c": 0.03})
    assert adjusted == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@settings(max_examples=100)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_lies_between_p_and_bonferroni_and_keeps_the_order(values):
    p = dict(zip("abcdef", values, strict=False))
    adjusted = holm(p)
    for arm, value in p.items():
        assert value <= adjusted[arm] <= min(1, len(p) * value)
    ordered = [adjusted[arm] for arm in sorted(p, key=p.get)]
    assert ordered == sorted(ordered)


def test_compare_corrects_for_the_arms_it_tests():
    """Three arms, one of them with a single pair of runs: two are tested, at 97.5 % each."""
    other = {seed: value - 0.1 * seed for seed, value in DOT.items()}
    runs = {"a": ARM, "b": other, "once": {0: 20.0}, "never": {9: 20.0}}
    effects = compare(runs, DOT, PERPLEXITY)
    assert list(effects) == ["a", "b", "once"]
    assert {e.level for e in effects.values()} == {0.975}
    for arm in ("a", "b"):
        alone = paired_effect(runs[arm], DOT, PERPLEXITY, level=0.975)
        assert (effects[arm].low, effects[arm].p) == (alone.low, alone.p)
    raw = {arm: effects[arm].p for arm in ("a", "b")}
    assert {arm: effects[arm].p_holm for arm in ("a", "b")} == holm(raw) != raw
    assert effects["once"].p is effects["once"].p_holm is None


def test_one_compared_arm_is_not_corrected():
    assert compare({"a": ARM}, DOT, PERPLEXITY) == {"a": paired_effect(ARM, DOT, PERPLEXITY)}


def test_compare_without_a_control_says_nothing():
    assert compare({"a": ARM, "b": DOT}, {}, PERPLEXITY) == {}


# Verdicts


@pytest.mark.parametrize(
    ("low", "high", "known", "word", "reason"),
    [
        (1.0, 3.0, 2.19, "reproduced", "is above 0 and contains the published +2.19 %"),
        (1.0, 2.19, 2.19, "reproduced", "is above 0 and contains the published +2.19 %"),
        (2.5, 3.0, 2.19, "reproduced", "is above 0 and exceeds the published +2.19 %"),
        (1.0, 2.0, 2.19, "contradicted", "is below the published +2.19 %, though above 0"),
        (-1.0, 2.0, 2.19, "contradicted", "is below the published +2.19 %"),
        (-3.0, -1.0, 2.19, "contradicted", "is below the published +2.19 %, and below 0"),
        (-1.0, 3.0, 2.19, "undecided", "contains both 0 and the published +2.19 %"),
        (0.0, 3.0, 2.19, "undecided", "contains both 0 and the published +2.19 %"),
        (1.0, 3.0, None, "better", "is above 0"),
        (-3.0, -1.0, None, "worse", "is below 0"),
        (-1.0, 3.0, None, "no difference shown", "contains 0"),
    ],
)
def test_verdict_follows_the_interval(low, high, known, word, reason):
    v = verdict(with_interval(low, high), known)
    start = f"{(low + high) / 2:+.3g} % over 3 seeds, 95 % interval {low:+.3g} to {high:+.3g} "
    assert (v.word, v.reason) == (word, start + reason)
    assert (v.needed is None) == (word not in ("undecided", "no difference shown"))


@pytest.mark.parametrize("known", [2.19, None])
def test_one_seed_is_a_single_run_whatever_it_shows(known):
    v = verdict(of(50.0), known)
    assert (v.word, v.needed) == ("single run", None)
    assert v.reason == "+50 points on one seed; its spread is unknown"


def test_two_seeds_rarely_decide():
    """+2 and +3 points look like the published 2.19, but 2 seeds leave -3.9 to 8.9."""
    v = verdict(of(2.0, 3.0), 2.19)
    assert (v.word, v.needed) == ("undecided", 4)


def test_level_of_several_arms_is_in_the_reason():
    assert "98.33 % interval" in verdict(of(1.0, 2.0, 3.0, level=1 - 0.05 / 3), None).reason


def test_an_interval_ends_where_an_effect_cannot_be_larger():
    """A difference of accuracies by 100 points, that of two effects nowhere nearer than 200."""
    arm, control = dict(enumerate((0.99, 0.2, 0.9))), dict(enumerate((0.0, 0.1, 0.0)))
    assert paired_effect(arm, control, ACCURACY, 0.99).high == 100
    assert effect_of([150, 155, 152], "points", 0.99).high > 155


def test_more_seeds_than_anyone_trains_are_not_proposed():
    assert verdict(of(-10.0, 10.01, -10.0, 10.01), None).needed is None


@pytest.mark.parametrize("effects", [(2.0, 3.0), (0.1, 0.9, 0.2), (1.0, 3.0, -1.0, 0.5, 2.0)])
@pytest.mark.parametrize("level", [0.95, 1 - 0.05 / 3])
def test_as_many_seeds_as_are_said_to_decide_do_so_in_nine_of_ten(effects, level):
    """By drawing them, spread and all."""
    e = of(*effects, level=level)
    needed = verdict(e, None).needed
    rng = np.random.default_rng(0)

    def decided(n: int) -> float:
        drawn = rng.normal(e.mean, e.sd, (50_000, n))
        error = drawn.std(1, ddof=1) / math.sqrt(n)
        return float((drawn.mean(1) > stats.t.ppf((1 + level) / 2, n - 1) * error).mean())

    assert decided(needed) > 0.895
    assert needed == e.n + 1 or decided(needed - 1) < 0.905


# What chance alone would give


def simulate(arms: int, n: int, effect: float, times: int):
    """Comparisons of `arms` arms that all are better by `effect` percent, with n seeds each.

    Runs differ by 3 % beyond what the arms of one seed share: enough for intervals around 0 to
    reach the published effect.
    """
    rng = np.random.default_rng([arms, n])
    shared = rng.normal(0, 0.05, (times, 1, n))
    runs = 20 * np.exp(shared + rng.normal(0, 0.03, (times, 1 + arms, n)))
    runs[:, 1:] *= 1 - effect / 100
    names = ["dot_product", "neural_d2", "neural_d16", "neural_full"][: 1 + arms]
    for table in runs.tolist():
        by_arm = {name: dict(enumerate(row)) for name, row in zip(names, table, strict=True)}
        yield list(compare(by_arm, by_arm.pop("dot_product"), PERPLEXITY).values())


@pytest.mark.parametrize(("arms", "n"), [(1, 3), (1, 5), (3, 3), (3, 5)])
def test_chance_alone_is_rarely_reproduced(arms, n):
    """Without any true effect at most 5 % of comparisons have an arm "reproduced", and 5 % have
    an interval without 0 (up to 6.5 % of 2,000 by chance).
    """
    comparisons = list(simulate(arms, n, effect=0, times=2000))
    wrong = [any(verdict(e, 2.19).word == "reproduced" for e in c) for c in comparisons]
    missed = [any(e.low > 0 or e.high < 0 for e in c) for c in comparisons]
    assert 0.005 < np.mean(wrong) <= 0.05  # not 0 either: then nothing could ever be shown
    assert 0.02 < np.mean(missed) < 0.065


def test_the_published_effect_is_rarely_contradicted():
    comparisons = simulate(arms=3, n=3, effect=2.19, times=1000)
    wrong = [any(verdict(e, 2.19).word == "contradicted" for e in c) for c in comparisons]
    assert 0.005 < np.mean(wrong) <= 0.05


def effects_of(true: float, n: int, times: int, sd: float = 0.3) -> list:
    rng = np.random.default_rng([n, int(10 * true)])
    return [effect_of(v, "%", 0.95) for v in rng.normal(true, sd, (times, n)).tolist()]


def test_equal_arms_are_rarely_called_different_and_equivalent_in_nine_of_ten_as_planned():
    """5 % different (by chance up to 6.5 % of 2,000), 90 % equivalent at the planned number."""
    planned = planned_seeds(0.3, 0.5, 0.95)
    words = [verdict(e, None, 0.5).word for e in effects_of(0.0, planned, 2000)]
    different = [not e.low <= 0 <= e.high for e in effects_of(0.0, planned, 2000)]
    assert 0.035 < np.mean(different) < 0.065
    assert np.mean([w in ("better", "worse") for w in words]) <= 0.05
    assert 0.88 < words.count("equivalent") / len(words) < 0.97
    fewer = [equivalent(e, 0.5) for e in effects_of(0.0, planned - 2, 2000)]
    assert np.mean(fewer) < 0.88


def test_arms_that_differ_by_the_smallest_effect_are_rarely_called_equivalent():
    """At most 2.5 %, by chance up to 3.3 % of 2,000; and nine of ten are called different."""
    planned = planned_seeds(0.3, 0.5, 0.95)
    words = [verdict(e, None, 0.5).word for e in effects_of(0.5, planned, 2000)]
    assert 0.01 < words.count("equivalent") / len(words) < 0.033
    assert words.count("better") / len(words) > 0.9


@pytest.mark.parametrize(("sd", "floor"), [(50.0, 0.0), (0.1, 1.0)])
def test_more_seeds_than_anyone_trains_are_not_planned(sd, floor):
    assert planned_seeds(sd, 0.5, 0.95, floor) is None


# The paper


def test_published_effects():
    assert published.effect("wikitext103", "neural_d2") == 2.19
    assert published.effect("cifar10", "neural_d2") == 3.0
    assert published.effect("cifar100", "neural_d2") == 4.26


@pytest.mark.parametrize(
    "unknown", [("wikitext103", "neural_d16"), ("wikitext2", "neural_d2"), ("cifar10", "additive")]
)
def test_what_is_not_published_is_unknown(unknown):
    assert published.effect(*unknown) is None


def test_published_names_are_ours():
    """A renamed arm or data set would silently turn a published number into a dash."""
    from conftest import config

    for data, experiment in published.EXPERIMENTS.items():
        for arm in experiment.effects:
            assert config(f"data={data}", f"model={arm}").data.name == data
