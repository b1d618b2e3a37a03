"""Whether two arms are equal except for attention: their configurations, models, initial values
and order of the data are compared before an experiment runs.

The authors' own pair was not: it differed in positions and in the scale of the embedding.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from attnlab.config.compose import flatten
from attnlab.config.schema import PER_ARM, UNHASHED, Config
from attnlab.data.loader import Order
from attnlab.errors import BadInput
from attnlab.models.transformer import build_model
from attnlab.sweeps.jobs import Job

OWN = (
    ".attention.mechanism",
    ".cross.mechanism",
    ".ffn_extra",
)  # in a module's name: what arms may differ in
MODEL = "model."  # in a key of the configuration: the same
SAMPLES = 1000  # of a nominal data set: two epochs of their order are compared

Difference = tuple[str, str]  # where, and both values


def differences(a: Config, b: Config) -> Iterator[Difference]:
    """Every difference beside attention: keys, modules, shapes, initial values, data order."""
    yield from (d for d in _keys(a, b) if not d[0].startswith(MODEL))
    yield from model_differences(*(_small(cfg) for cfg in (a, b)))
    orders = [Order(SAMPLES, cfg.seed).keys(0, 2 * SAMPLES) for cfg in (a, b)]
    if orders[0] != orders[1]:
        yield "order of the training samples", "not the same"


def attention_differences(a: Config, b: Config) -> Iterator[Difference]:
    """The keys of the model section in which the arms differ."""
    yield from (d for d in _keys(a, b) if d[0].startswith(MODEL))


def _keys(a: Config, b: Config) -> Iterator[Difference]:
    ours, theirs = (flatten(cfg.model_dump(exclude=UNHASHED)) for cfg in (a, b))
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            yield key, f"{ours.get(key)} | {theirs.get(key)}"


def model_differences(a: nn.Module, b: nn.Module) -> Iterator[Difference]:
    """Modules, parameters and buffers outside the arms' own that are not equal bit for bit."""
    parts = [dict(_shared_parts(model)) for model in (a, b)]
    for name in dict.fromkeys((*parts[0], *parts[1])):
        ours, theirs = (found.get(name) for found in parts)
        if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
            if ours.shape != theirs.shape:
                yield name, f"shape {tuple(ours.shape)} | {tuple(theirs.shape)}"
            elif not torch.equal(ours, theirs):
                yield name, "not the same values"
        elif isinstance(ours, torch.Tensor) or isinstance(theirs, torch.Tensor):
            yield name, f"{_there(ours)} | {_there(theirs)}"
        elif ours != theirs:
            yield name, f"{ours} | {theirs}"


def check_arms(jobs: Sequence[Job]) -> None:
    """Compare the arms of every comparison in a sweep, the jobs that differ only by what was typed
    for the model, and print what was found.

    Errors: `BadInput` with a line for every difference that the released code does not have too.
    """
    groups: dict[tuple[str, ...], dict[str, Job]] = {}
    for job in jobs:
        typed = tuple(o for o in job.overrides if not o.startswith(("model=", "model.", "seed=")))
        arm = " ".join(o for o in job.overrides if o.startswith(("model=", "model.")))
        groups.setdefault(typed, {}).setdefault(arm, job)
    unknown, known = [], ""
    wider = {job.cfg.model.name for job in jobs if getattr(job.cfg.model, "ffn_extra", None)}
    for (name, first), *others in (list(arms.items()) for arms in groups.values()):
        for arm, job in others:
            paired = job.cfg.model_copy(update={"seed": first.cfg.seed})  # as reports pair them
            for where, what in differences(first.cfg, paired):
                line = f"{name} and {arm} differ in {where}: {what}"
                if job.cfg.protocol == "released" and where in PER_ARM:
                    print(f"as in the released code, {line}")
                    known = " apart from that"
                else:
                    unknown.append(line)
    if unknown:
        raise BadInput("\n".join(unknown))
    if wider:
        known += f", apart from more units in the FFN of {', '.join(sorted(wider))}"
    print(f"arms: {sum(map(len, groups.values()))}; they differ only in attention{known}")


def _small(cfg: Config) -> nn.Module:
    """The model as configured, but for as few tokens, words and classes as show any difference."""
    patch = getattr(cfg.arch, "patch_size", 0)
    return build_model(
        cfg.arch, cfg.model, cfg.seed, inputs=3 * patch**2 or 64, outputs=64, tokens=64
    )


def _shared_parts(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Name and value of everything outside the arms' own."""
    for name, module in model.named_modules():
        if not _is_own(name):
            yield f"{name or 'model'} (module)", f"{type(module).__name__}({module.extra_repr()})"
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not _is_own(name):
            yield name, tensor


def _is_own(name: str) -> bool:
    return any(part in name for part in OWN)


def _there(part: object) -> str:
    return "absent" if part is None else "there"
