"""Which runs belong together: comparisons, their arms, and the effect of each arm."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from attnlab.config.measures import Measure
from attnlab.config.schema import PER_ARM, UNHASHED
from attnlab.report import naming, statistics
from attnlab.report.collect import Run
from attnlab.report.naming import arm_changes

NAMES = ("dot_product", "neural_full", "neural_d16", "neural_d2")  # the order of the paper
SCALES = ("paper", "mini", "smoke")


@dataclass(eq=False)
class Arm:
    """Runs that differ in nothing but their seed (and model.backend).

    own: the keys that make the arm: model.*, and arch.* where the released protocol sets it.
    label: its name, and what it changes of the shipped configuration of that name. ablation: the
    keys that it changes; empty if it changes none, or if the shipped arm was not run.
    """

    label: str
    own: dict[str, Any]
    ablation: str
    runs: list[Run]

    @cached_property
    def counted(self) -> dict[int, Run]:
        """seed -> finished run, by seed; of several with one seed the first by path counts."""
        finished = {r.config["seed"]: r for r in reversed(self.runs) if r.value is not None}
        return dict(sorted(finished.items()))

    @property
    def one_each(self) -> list[Run]:
        """One run of every seed: the one that counts, or the first of those that do not."""
        first = {run.config["seed"]: run for run in reversed(self.runs)} | self.counted
        return [first[seed] for seed in sorted(first)]

    @property
    def repeated(self) -> list[Run]:
        """Finished runs that repeat a seed, and so do not count."""
        counted = {run.folder for run in self.counted.values()}
        return [r for r in self.runs if r.value is not None and r.folder not in counted]

    @property
    def failed(self) -> list[Run]:
        """One run of every seed that has ended, and none of whose runs has a result."""
        ended = (run for run in reversed(self.runs) if run.status in ("failed", "finished"))
        one_each = {run.config["seed"]: run for run in ended}
        return [one_each[seed] for seed in sorted(one_each.keys() - self.counted.keys())]

    @property
    def values(self) -> dict[int, float]:
        """seed -> test metric."""
        return {seed: run.value for seed, run in self.counted.items()}

    @property
    def config(self) -> dict[str, Any]:
        """That of any of its runs; all but the seed holds for the others."""
        return self.runs[0].config


@dataclass(eq=False)
class Comparison:
    """Arms whose runs agree in everything but seed and attention.

    arms: dot_product first where there is one. ablation: of which keys it is one; empty for the
    paper's arms. slug: short, as part of a file name. registered: label of an arm -> the question
    that judges its effect in the comparison's measure; registered_bleu: the same in BLEU.
    """

    title: str
    slug: str
    ablation: str
    arms: list[Arm]
    registered: dict[str, str] = field(default_factory=dict)
    registered_bleu: dict[str, str] = field(default_factory=dict)

    @cached_property
    def effects(self) -> dict[str, statistics.Effect]:
        """Of `judged` over the baseline, by label."""
        return self._over(self.baseline)

    @cached_property
    def effects_over_uniform(self) -> dict[str, statistics.Effect]:
        """Of an ablation's arms over uniform attention, where it was run: its second baseline."""
        return self._over(_uniform(self.arms)) if self.ablation else {}

    def _over(self, base: Arm | None) -> dict[str, statistics.Effect]:
        """Effects of `judged`; none if the data was not the same for all."""
        if base is None or not same_data(self.counted):
            return {}
        values = {arm.label: arm.values for arm in self.judged if arm.values}
        samples = samples_tested(self.counted)
        return statistics.compare(values, base.values, self.measure, samples)

    @property
    def baseline(self) -> Arm | None:
        """The arm that the others are compared with."""
        return baseline_of(self.arms)

    @property
    def family(self) -> list[Arm]:
        """The arms that stand in this comparison alone: an ablation shows its baselines and what
        it changes again.
        """
        return [arm for arm in self.arms if bool(arm.ablation) == bool(self.ablation)]

    @property
    def judged(self) -> list[Arm]:
        """The arms of this family of tests."""
        return [arm for arm in self.family if arm is not self.baseline]

    @property
    def config(self) -> dict[str, Any]:
        """That of any run; all but the seed and `Arm.own` holds for the others."""
        return self.arms[0].config

    @property
    def measure(self) -> Measure:
        """What its runs are compared in."""
        return self.arms[0].runs[0].measure

    @property
    def fingerprints(self) -> set[str]:
        """Of the data of all finished runs: a name does not say what was behind it."""
        return fingerprints(self.counted)

    @property
    def counted(self) -> list[Run]:
        """The finished runs of all arms, one of each seed."""
        return [run for arm in self.arms for run in arm.counted.values()]

    @property
    def runs(self) -> list[Run]:
        """All of them, finished or not."""
        return [run for arm in self.arms for run in arm.runs]


def fingerprints(runs: Iterable[Run]) -> set[str]:
    """Of the data of finished runs."""
    return {str(run.result.get("data_fingerprint")) for run in runs}


def same_data(runs: Iterable[Run]) -> bool:
    """Whether there are finished runs, and all had the same data."""
    return len(fingerprints(runs)) == 1


def samples_tested(runs: Iterable[Run]) -> int | None:
    """Of the test split of images, which are right or wrong as a whole; None for other data, whose
    samples are right in part, and where a run does not say, as those of earlier versions.
    """
    found = {
        run.result.get("test_samples") if run.config["data.kind"] == "image" else None
        for run in runs
    }
    return found.pop() if len(found) == 1 else None


def comparisons(runs: Iterable[Run]) -> list[Comparison]:
    """All comparisons among readable runs; published scale first, then by data set and size.

    Arms that change keys of the shipped arm of their name are an ablation of these keys and are
    compared apart, so that they do not widen the intervals of the paper's arms.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.status != "unreadable":
            groups.setdefault(naming.frozen(shared(run.config)), []).append(run)
    ordered = sorted(groups.values(), key=_order)
    titles = naming.titles([shared(group[0].config) for group in ordered])
    found: list[Comparison] = []
    for title, group in zip(titles, ordered, strict=True):
        for ablation, arms in _families(arms_of(group)).items():
            more = f": ablation of {ablation}" if ablation else ""
            where = (group[0].config[key] for key in ("data.name", "scale", "protocol"))
            found.append(Comparison(title + more, " ".join(where) + more, ablation, arms))
    for comparison, slug in zip(found, naming.slugs(c.slug for c in found), strict=True):
        comparison.slug = slug
    return found


def _is_own(key: str, config: dict[str, Any]) -> bool:
    return key.startswith("model.") or (key in PER_ARM and config["protocol"] == "released")


def shared(config: dict[str, Any]) -> dict[str, Any]:
    """What all runs of a comparison agree in: also where the data was read from, as published
    numbers are judged only for data from the hub.
    """
    return {
        key: value
        for key, value in config.items()
        if key.split(".")[0] not in UNHASHED | {"seed"} and not _is_own(key, config)
    }


def _own(config: dict[str, Any]) -> dict[str, Any]:
    """What makes an arm."""
    return {k: v for k, v in config.items() if _is_own(k, config) and k != "model.backend"}


def _order(group: list[Run]) -> tuple:
    config = group[0].config
    rank = SCALES.index(config["scale"]) if config["scale"] in SCALES else len(SCALES)
    kind = (rank, config["data.name"], config["protocol"])
    return (*kind, -len(group), naming.frozen(shared(config)))


def arms_of(group: list[Run]) -> list[Arm]:
    """The arms among runs that agree in everything else, the baseline first."""
    members: dict[str, list[Run]] = {}
    for run in group:
        members.setdefault(naming.frozen(_own(run.config)), []).append(run)
    owns = [_own(runs[0].config) for runs in members.values()]
    common = shared(group[0].config)
    changes = [arm_changes(common | own) for own in owns]
    shipped = {own["model.name"] for own, keys in zip(owns, changes, strict=True) if keys == {}}
    alike = Counter(naming.label(*pair) for pair in zip(owns, changes, strict=True))
    arms = []
    for own, keys, runs in zip(owns, changes, members.values(), strict=True):
        name = own["model.name"]
        ablation = ", ".join(k.removeprefix("model.") for k in keys) if name in shipped else ""
        label = naming.label(own, keys)
        if alike[label] > 1:  # nothing of its name is shipped, or not with these keys
            namesakes = [other for other in owns if other["model.name"] == name]
            label = naming.label(own, [*keys, *naming.differing(namesakes)])
        arms.append(Arm(label, own, ablation, runs))
    return sorted(arms, key=_arm_order)


def _arm_order(arm: Arm) -> tuple:
    name = arm.own["model.name"]
    rank = NAMES.index(name) if name in NAMES else len(NAMES)
    dot = arm.own["model.mechanism"] == "dot_product"
    return (not dot, bool(arm.ablation), rank, naming.natural(arm.label))


def baseline_of(arms: list[Arm]) -> Arm | None:
    """The arm that the others are compared with: the first with dot-product attention."""
    return arms[0] if arms[0].own["model.mechanism"] == "dot_product" else None


def _uniform(arms: list[Arm]) -> Arm | None:
    found = (arm for arm in arms if arm.own["model.mechanism"] == "uniform" and not arm.ablation)
    return next(found, None)


def _families(arms: list[Arm]) -> dict[str, list[Arm]]:
    """Arms to compare with each other, by what they are an ablation of; each ablation with the
    baseline, uniform attention, and the arms that it changes. Ablations that share a key, as in a
    sweep over two options, are one.
    """
    families: dict[str, list[Arm]] = {}
    merged: list[set[str]] = []
    for keys in (set(arm.ablation.split(", ")) for arm in arms if arm.ablation):
        apart = [other for other in merged if not other & keys]
        merged = [*apart, keys.union(*(other for other in merged if other & keys))]
    for arm in arms:
        if not arm.ablation:
            families.setdefault("", []).append(arm)
    for arm in arms:
        if arm.ablation:
            name = arm.own["model.name"]
            original = next(a for a in families[""] if a.own["model.name"] == name)
            keys = next(all_keys for all_keys in merged if arm.ablation.split(", ")[0] in all_keys)
            family = families.setdefault(", ".join(sorted(keys)), [])
            for member in (baseline_of(arms), _uniform(arms), original, arm):
                if member and member not in family:
                    family.append(member)
    return {
        keys: sorted((_spelt_out(arm, family, keys) for arm in family), key=_arm_order)
        for keys, family in families.items()
    }


def _spelt_out(arm: Arm, family: list[Arm], ablation: str) -> Arm:
    """The arm under a label with its value of every key of the ablation, its shipped one too; the
    baseline and uniform attention, which have none, as they are.
    """
    if all(arm.own["model.name"] != other.own["model.name"] for other in family if other.ablation):
        return arm
    keys = [k for k in arm.own if k.removeprefix("model.") in ablation.split(", ")]
    return replace(arm, label=naming.label(arm.own, keys))
