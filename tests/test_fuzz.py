"""Whatever is typed behind train.py runs, or is refused by one line a problem and leaves nothing.

Overrides are drawn from the schema, so a new key is covered without a word here. ATTNLAB_FUZZ=2000
draws so many examples, other ones each time; without it a few that are always the same.
"""

import contextlib
import io
import itertools
import json
import math
import os
import runpy
import shlex
import sys
import tempfile
from collections import Counter
from functools import cache as once
from pathlib import Path

import torch
from conftest import ROOT, config
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from attnlab.config import compose
from attnlab.config.compose import flatten
from attnlab.config.schema import Config
from attnlab.errors import NonFinite, OutOfResources

EXAMPLES = int(os.environ.get("ATTNLAB_FUZZ", 25))
SCHEMA = Config.model_json_schema()
STOPS = (NonFinite, OutOfResources)  # what no check can foresee, like the loss at lr=1e30
CHEAP = 64  # a size up to which two steps take seconds

BASE = ["scale=smoke", "logger=none", "trainer.max_steps=2", "trainer.eval_every=2"]
# What scale=smoke sets, for draws that choose other sizes; all of it each time would take long.
SMOKE = {
    "all": [
        *("arch.layers=2", "arch.heads=2", "arch.width=32", "arch.ffn_width=64"),
        *("trainer.batch_size=4", "trainer.warmup_steps=0"),
    ],
    "symbols": ["data.sequence_length=16", "data.train_size=64", "data.eval_size=16"],
    "text": [
        *("data.tokenizer=train", "data.vocab_size=300"),
        *("data.sequence_length=64", "data.eval_stride=64"),
    ],
    "translation": [
        *("data.vocab_size=1000", "data.sequence_length=64"),
        "trainer.warmup_steps=1",  # its schedule needs one
    ],
    "image": ["data.image_size=16", "arch.patch_size=4"],
}
GROUPS = {
    str(folder.relative_to(compose.CONFIGS)): sorted(p.stem for p in folder.glob("*.yaml"))
    for folder in compose.CONFIGS.iterdir()
    if folder.is_dir()
}
# What is no value of most keys, and what the command line's grammar makes something else of.
ODD = [
    *("", "null", "???", "true", "nan", "inf", "-inf", "-1", "0", "1.5", "1e400", "0x10", "1_0"),
    *(str(10**30), "abc", "[]", "[1]", "[[1,2]]", "{}", "{a: 1}", "1,2", "a,b", "choice(1,2)"),
    *("range(1,3)", "glob(*)", "${seed}", "${nokey}", "${oc.env:NOT_THERE}", "${", "$", "\\"),
    *("'quoted'", "'", '"', "[", "]", "{", "}", "(", ")", "a=b", "a:b", "a b", " ", "%s", "~"),
    *("!", "@", "*", "é", "鼠", "'a\nb'", "'a\tb'", "\x1b[31m", "..", "../..", "x" * 300),
    "'~nobody/x'",
]
FOLDERS = [
    *("here", "a/b/c", "'a b'", "é", "./", "../beside", "/dev/null/x", "/proc/x", "a=b", "''"),
    *("'~'", "-", "%", "train"),
]


def variants(part: dict) -> list[dict]:
    """The schemas that a part of the schema stands for."""
    if "$ref" in part:
        return [SCHEMA["$defs"][part["$ref"].split("/")[-1]]]
    return part.get("anyOf") or part.get("oneOf") or [part]


def tagged(part: dict, tags: set[str] | None) -> list[dict]:
    """The variants of a section that have one of the tags; all if none has, or without tags."""
    mapping = part["discriminator"]["mapping"]
    chosen = [mapping[tag] for tag in sorted(mapping.keys() & (tags or set()) or mapping)]
    nested = [tagged(t, tags) if isinstance(t, dict) else variants({"$ref": t}) for t in chosen]
    return [one for several in nested for one in several]


def schemas(part: dict, name: str = "", tags: set[str] | None = None) -> dict[str, list[dict]]:
    """Every key of the schema with what it may be; with tags, of those variants of a section."""
    found: dict[str, list[dict]] = {}
    for one in tagged(part, tags) if "discriminator" in part else variants(part):
        if name:
            found.setdefault(name, []).append(one)
        for key, below in one.get("properties", {}).items():
            for inner, several in schemas(below, f"{name}.{key}".lstrip("."), tags).items():
                found.setdefault(inner, []).extend(several)
    return found


def allowed(part: dict, now) -> st.SearchStrategy[str]:
    """What may be typed for a value of this schema, as long as it is cheap; now: its value."""
    match part:
        case {"enum": choices}:
            return st.sampled_from(choices)
        case {"const": choice}:
            return st.just(str(choice))
        case {"type": "boolean"}:
            return st.sampled_from(["true", "false"])
        case {"type": "null"}:
            return st.just("null")
        case {"type": "integer"}:
            low, high = bounds(part)
            low, now = max(low, 0), now if isinstance(now, int) else 0
            sizes, most = {*range(low, low + 4), now, 2 * now, high}, max(CHEAP, 2 * low, 2 * now)
            return st.sampled_from([str(n) for n in sorted(sizes) if low <= n <= min(high, most)])
        case {"type": "number"}:
            low, high = bounds(part)
            inside = st.floats(
                None if low == -math.inf else low,
                None if high == math.inf else high,
                allow_nan=False,
                allow_infinity=False,
                exclude_min="exclusiveMinimum" in part,
                exclude_max="exclusiveMaximum" in part,
            )
            return (inside if now is None else inside | st.just(now)).map(str)
        case {"type": "array", "items": items}:
            least, most = part.get("minItems", 0), part.get("maxItems", 3)
            items = st.one_of(*(allowed(one, None) for one in variants(items)))
            return st.lists(items, min_size=least, max_size=most).map(listed)
        case {"type": "string", "pattern": pattern}:
            return st.from_regex(pattern, fullmatch=True)
        case {"type": "string"}:
            return st.sampled_from([*FOLDERS, *([str(now)] if now else [])])
    return st.just("{}")  # a section


def beyond(part: dict) -> st.SearchStrategy[str]:
    """What is close to what the schema allows, but not allowed."""
    match part:
        case {"enum": choices}:
            return st.sampled_from(choices).flatmap(misspelt)
        case {"const": choice}:
            return misspelt(str(choice))
        case {"type": "integer"} | {"type": "number"}:
            low, high = bounds(part)
            ends = [low - 1, low - 0.5, high + 1, high + 0.5]
            return st.sampled_from([str(end) for end in ends] + ["1.5", "nan"])
        case {"type": "array", "items": items}:
            one = next(iter(variants(items)))
            items, most = allowed(one, None) | beyond(one), part.get("maxItems", 2) + 1
            return st.lists(items, max_size=most).map(listed)
    return st.sampled_from(ODD)


def bounds(part: dict) -> tuple[float, float]:
    low = part.get("minimum", part.get("exclusiveMinimum", -math.inf))
    return low, part.get("maximum", part.get("exclusiveMaximum", math.inf))


def listed(items: list[str]) -> str:
    return f"[{','.join(items)}]"


def misspelt(word: str) -> st.SearchStrategy[str]:
    """The word with one letter left out, or another one added, or in capitals."""
    left_out = st.integers(0, max(0, len(word) - 1)).map(lambda i: word[:i] + word[i + 1 :])
    return left_out | st.sampled_from([word + "x", word.upper(), f"{word}.{word}"])


@st.composite
def overrides(draw, keys: dict[str, list[dict]], values: dict[str, object], right: bool) -> str:
    """One override of the schema; right: with a value that its key allows."""
    key = draw(st.sampled_from(sorted(keys)))
    parts = list(itertools.chain.from_iterable(map(variants, keys[key])))
    if right:
        value = draw(st.one_of(*(allowed(part, values.get(key)) for part in parts)))
    else:
        value = draw(st.one_of(*map(beyond, parts)) | st.sampled_from(ODD))
    return f"{key}={value}"


@st.composite
def groups(draw) -> str:
    """A choice of a group, or nearly so; an experiment would start a sweep."""
    group = draw(st.sampled_from(sorted(GROUPS)))
    choice = draw(st.sampled_from(GROUPS[group]))
    wrong = draw(misspelt(choice) | st.sampled_from(ODD))
    right = group != "experiment" and draw(st.booleans())
    return f"{group}={choice if right else wrong}"


@st.composite
def distorted(draw, override: str) -> str:
    """An override written in one of the ways that the command line reads otherwise."""
    key, _, value = override.partition("=")
    wrong = draw(misspelt(key) | st.sampled_from(["a", "a.b", "é", "x" * 300, "a b", "", "hydra"]))
    forms = ["+{k}={v}", "++{k}={v}", "~{k}", "~{k}={v}", "{k}", "{k}@here={v}", "{k}.x={v}"]
    forms += ["{w}={v}", "+{w}={v}", "~{w}", "-{k}={v}", "--{k}={v}", "{k} ={v}", "{k}:{v}", "{v}"]
    return draw(st.sampled_from(forms)).format(k=key, v=value, w=wrong)


@once
def small(data: str, local: str) -> tuple[list[str], dict[str, object]]:
    """Overrides that make this data set and everything else small, and all values under them."""
    embedded = {"text": "pydocs", "images": "digits"}.get(data)
    own = [f"data.path=embedded:{embedded}"] * bool(embedded)
    base = [f"data={data}", *own, *BASE]
    values = flatten(config(*base).model_dump())
    if not values.get("data.path", "embedded:").startswith("embedded:"):
        base.append(f"data.path={local}")
        if values["data.kind"] == "image":
            base.append("data.validation_size=20")
    return base, values


@once
def mechanism(model: str) -> str:
    return config(f"model={model}").model.mechanism


@st.composite
def commands(draw, rows: dict[str, str]) -> tuple[list[str], list[str]]:
    """A small base with one to three overrides, and these alone.

    rows: folder of a local copy for each hub data set; what has none is refused.
    """
    data = draw(st.sampled_from(["nt", "digits", *rows]))
    model = draw(st.sampled_from(GROUPS["model"]))
    base, values = small(data, rows.get(data, "nowhere"))
    tags = {values["arch.body"], values["data.kind"], mechanism(model)}
    here, everywhere = schemas(SCHEMA, tags=tags), schemas(SCHEMA)
    leaves = {key: parts for key, parts in here.items() if "properties" not in parts[0]}
    right = overrides(leaves, values, right=True)
    wrong = overrides(here, values, right=False) | overrides(everywhere, values, right=True)
    folder = st.sampled_from(FOLDERS + ODD).map("hydra.run.dir={}".format)
    other = [wrong, wrong, groups(), folder, (right | wrong).flatmap(distorted)]
    kinds = st.sampled_from([right] * 12 + other)
    drawn = [draw(draw(kinds)) for _ in range(draw(st.integers(1, 3)))]
    names = {name(o) for o in drawn}
    chosen = next((o.split("=")[1] for o in drawn if o.startswith("data=")), data)
    if chosen in GROUPS["data"]:
        base, values = small(chosen, rows.get(chosen, "nowhere"))
    if names & GROUPS.keys() - {"data", "model"}:
        base = [*base, *SMOKE["all"], *SMOKE[values["data.kind"]]]
    if names & {"trainer.max_steps", "trainer"}:
        base = [*base, "trainer.epochs=null"]
    # minutes a draw, and no question of what is typed
    assume(not any(o.endswith("runtime.compile=true") for o in drawn))
    assume(not {"trainer.max_steps", "trainer.epochs"} <= names)
    kept = [o for o in [f"model={model}", *base] if name(o) not in names]
    return [*kept, *drawn], drawn


def name(override: str) -> str:
    return override.lstrip("+~-").partition("=")[0].partition("@")[0].strip()


def names(line: str, override: str) -> bool:
    """Whether a line says which override it is about; a group may set any key."""
    key, value = name(override), override.partition("=")[2]
    inside = [key.split(".")[0], repr(override)[1:-1], *([value] if value else [])]
    return key in GROUPS or any(word in line for word in inside)


def train_here(words: list[str]) -> tuple[int, str, str]:
    """train.py in this process; (exit code, stdout, stderr). An exception is a traceback there."""
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["train.py", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as end:
        return end.code, out.getvalue(), err.getvalue()
    finally:
        sys.argv = argv
    return 0, out.getvalue(), err.getvalue()


def check_end(words: list[str], drawn: list[str]) -> int:
    """Run a command in a folder of its own, and see that it ended as it should; its exit code."""
    with tempfile.TemporaryDirectory() as around:
        work = Path(around, "in", "work")  # `..` stays inside
        work.mkdir(parents=True)
        with contextlib.chdir(work):
            code, out, err = train_here(words)
            left = [str(p) for p in Path(around).rglob("*") if p not in (work, work.parent)]
            if code == 0:
                folder = Path(out.splitlines()[-1].removeprefix("run: "))
                assert json.loads((folder / "result.json").read_text())["status"] == "finished"
                return code
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 or code in (failure.exit_code for failure in STOPS), (code, err)
    assert lines and "Traceback" not in err, err
    if code == 2:
        assert lines == err.splitlines(), err
        for line in lines:
            assert any(names(line, o) for o in drawn), line
        assert not left, left
    return code


def test_any_override_runs_or_is_refused(train, cache, text_rows, image_rows, monkeypatch, capsys):
    for variable in ("HYDRA_FULL_ERROR", "HF_HUB_OFFLINE"):  # set on the way; offline: no waiting
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("ATTNLAB_CACHE", str(cache))
    rows = {"wikitext2": str(text_rows), "cifar10": str(image_rows)}
    done: dict[tuple[str, ...], int | str] = {}  # exit code of each, or what was wrong
    threads = torch.get_num_threads()

    @settings(
        max_examples=EXAMPLES,
        database=None,
        phases=[Phase.explicit, Phase.generate],  # three overrides need no shrinking
        suppress_health_check=list(HealthCheck),
    )
    @given(commands(rows))
    def fuzz(command):
        words, drawn = command
        assume(tuple(words) not in done)  # some of it is drawn again and again
        try:
            done[tuple(words)] = check_end(words, drawn)
        except Exception as error:  # go on, and say all at once
            done[tuple(words)] = f"{type(error).__name__}: {error}"

    try:
        fuzz()
    finally:
        torch.set_num_threads(threads)
    ends, wrong = Counter(done.values()), {w: e for w, e in done.items() if isinstance(e, str)}
    stopped = sum(ends[failure.exit_code] for failure in STOPS)
    with capsys.disabled():
        print(f"{len(done)} overrides: {ends[0]} ran, {ends[2]} refused, {stopped} stopped")
    assert not wrong, "\n".join(f"{shlex.join(words)}\n  {end}" for words, end in wrong.items())
    folders = ("hydra.run.dir", "runtime.")
    as_process = {code: w for w, code in done.items() if not any(o.startswith(folders) for o in w)}
    for code, words in as_process.items():  # one of each
        ended, _, err = train(*words, HF_HUB_OFFLINE="1")
        assert ended == code and "Traceback" not in err, err
