"""Data of one's own: any format that `datasets` reads, splits by a rule, errors in one line."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Halts, config, prepared
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

from attnlab.config import compose
from attnlab.config.compose import flatten
from attnlab.data import text as text_module
from attnlab.data.cache import growing_array
from attnlab.data.splits import cut
from attnlab.errors import BadInput
from attnlab.report.naming import reference
from attnlab.report.render import report
from attnlab.run import run

SMOKE = ("scale=smoke", "logger=none", "runtime.threads=1", "model=dot_product")
SPLITS = ("train", "validation", "test")
ANY = {kind: config(f"data={kind}", "data.path=x").data for kind in ("text", "images")}
# Documents with blank lines, characters beyond ASCII and a comma, which CSV must quote.
DOCUMENTS = [f"Öl {i},\n\n" + f"the quick brown fox {i} jumps\n" * 9 for i in range(120)]


def own(kind: str, folder: Path, *overrides: str):
    """The configuration of `data=<kind>`, cached beside the folder."""
    where = (f"data.path={folder}", f"runtime.cache={folder.parent / 'cache'}")
    return config(f"data={kind}", *where, *SMOKE, *overrides)


def write_jsonl(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_images(folder: Path, sizes=((20, 20),), classes=("cat", "dog", "owl"), each=10) -> Path:
    """A folder of images for each class."""
    random = np.random.default_rng(0)
    for number in range(each * len(classes)):
        file = folder / classes[number % len(classes)] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        shape = (*sizes[number % len(sizes)], 3)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(file)
    return folder


@pytest.fixture
def documents(tmp_path):
    """The same text as .txt files (a row is a line), JSON lines, CSV and parquet (a document)."""
    parts = dict(zip(SPLITS, (DOCUMENTS[:80], DOCUMENTS[80:100], DOCUMENTS[100:]), strict=True))
    for split, rows in parts.items():
        frame = pd.DataFrame({"body": rows, "id": range(len(rows))})
        for suffix in ("txt", "jsonl", "csv", "parquet"):
            (tmp_path / suffix).mkdir(exist_ok=True)
        (tmp_path / "txt" / f"{split}.txt").write_text("".join(rows))
        write_jsonl(tmp_path / "jsonl" / f"{split}.jsonl", frame.to_dict("records"))
        frame.to_csv(tmp_path / "csv" / f"{split}.csv", index=False)
        frame.to_parquet(tmp_path / "parquet" / f"{split}.parquet")
    return tmp_path


def test_every_format_gives_the_same_tokens(documents, monkeypatch):
    """Documents in rows and lines in rows too, and whatever is in memory at a time."""
    first = prepared(own("text", documents / "txt"))
    sep, ends = first.tokens["train"] == 3, "".join(DOCUMENTS[:80]).count("\n")
    assert (
        sep.sum() == ends and first.words["train"] == len("".join(DOCUMENTS[:80]).split()) + ends
    )
    monkeypatch.setattr(text_module, "READ_ROWS", 7)
    monkeypatch.setattr(text_module, "ENCODE_CHARACTERS", 100)
    for suffix in ("jsonl", "csv", "parquet"):
        other = prepared(own("text", documents / suffix, "data.text_column=body"))
        assert other.fingerprint == first.fingerprint, suffix
        assert all(np.array_equal(first.tokens[s], other.tokens[s]) for s in SPLITS)
    monkeypatch.setattr(text_module, "COUNT_TOKENS", 10)
    assert first.baselines("test") == prepared(own("text", documents / "txt")).baselines("test")


def test_any_alphabet_is_read_in_any_locale(train, tmp_path):
    """The tokenizer is a file of letters beyond ASCII."""
    (tmp_path / "words").mkdir()
    text = "Ärger über Öl, żółw и ёжик\n" * 200
    (tmp_path / "words" / "train.txt").write_text(text, encoding="utf-8")
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ("data=text", "data.path=words", "scale=smoke", "data.vocab_size=60")
    code, _, err = train(*words, **env)
    assert code == 0, err


@pytest.mark.parametrize("key", ["output_root", "cache"])
def test_what_runs_write_is_not_read_as_data(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    other = {"output_root": "cache", "cache": "output_root"}[key]
    words = ("data=text", "data.path=.", f"runtime.{key}=here", f"runtime.{other}=../elsewhere")
    with pytest.raises(BadInput, match=rf"^runtime\.{key}=here: lies in data\.path=\."):
        config(*words)


def test_a_path_may_begin_with_the_home_folder(documents, monkeypatch):
    monkeypatch.setenv("HOME", str(documents))
    by_home = own("text", documents / "txt", "data.path='~/txt'")
    assert prepared(by_home).fingerprint == prepared(own("text", documents / "txt")).fingerprint


def test_a_file_that_may_not_be_read_is_one_line(documents, train):
    halts = Halts(documents, ("open r* train.txt", 1, "EACCES"))
    where = (f"data.path={documents / 'txt'}", f"runtime.cache={documents / 'cache'}")
    code, _, err = train("data=text", *where, "scale=smoke", "model=dot_product", **halts.env)
    assert (code, err) == (2, "error: train.txt: Permission denied\n")


sizes = st.none() | st.floats(0.01, 0.45)


@settings(max_examples=200)
@given(st.integers(3, 2000), sizes, sizes, st.sampled_from(["text", "images"]))
def test_splits_are_cut_by_one_rule(n, validation, test, kind):
    """Every row is in one split; no split depends on another's size; lines stay together."""
    given_sizes = {"validation": validation, "test": test}

    def parts(**sizes: float | None) -> dict[str, np.ndarray]:
        data = ANY[kind].model_copy(update={f"{split}_size": s for split, s in sizes.items()})
        return cut(n, data, [split for split, size in sizes.items() if size is None], "x")

    found, units = parts(**given_sizes), n if kind == "images" else min(n, 100)
    assert np.array_equal(np.sort(np.concatenate(list(found.values()))), np.arange(n))
    assert found.keys() == {"train", *(split for split, size in given_sizes.items() if size)}
    for split in found.keys() - {"train"}:
        alone = parts(**(dict.fromkeys(given_sizes) | {split: given_sizes[split]}))
        assert np.array_equal(alone[split], found[split])
        taken = max(1, round(given_sizes[split] * units))
        assert abs(len(found[split]) - taken * n / units) <= taken
    assert sum((np.diff(rows) > 1).sum() for rows in found.values()) <= units


@given(st.lists(st.lists(st.integers(0, 2**16 - 1), max_size=5), max_size=5))
def test_a_growing_array_is_the_file_of_the_whole(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("arrays")
    with growing_array(folder / "parts.npy", np.uint16) as append:
        for part in parts:
            append(np.array(part, np.uint16))
    np.save(folder / "whole.npy", np.array([x for part in parts for x in part], np.uint16))
    assert (folder / "parts.npy").read_bytes() == (folder / "whole.npy").read_bytes()


def test_a_folder_of_images_is_read_with_its_classes(tmp_path):
    folder = write_images(tmp_path / "pets")
    data = prepared(own("images", folder))
    assert (data.classes, data.names) == (3, ["cat", "dog", "owl"])
    assert {s: len(rows) for s, rows in data.indices.items()} == {
        "train": 24,
        "validation": 3,
        "test": 3,
    }
    expected = {
        (folder_.name, np.asarray(Image.open(file)).tobytes())
        for folder_ in folder.iterdir()
        for file in folder_.iterdir()
    }
    pairs = zip(data.labels["train"], data.pixels["train"], strict=True)
    assert {(data.names[label], pixels.tobytes()) for label, pixels in pairs} == expected


def test_images_of_several_sizes_become_squares(tmp_path):
    folder = write_images(tmp_path / "pets", sizes=((20, 30), (25, 24), (16, 16)))
    data = prepared(own("images", folder))
    assert data.pixels["train"].shape == (30, 16, 16, 3)
    small = [f for f in folder.rglob("*.png") if Image.open(f).size == (16, 16)]
    stored = {pixels.tobytes() for pixels in data.pixels["train"]}
    assert all(np.asarray(Image.open(f)).tobytes() in stored for f in small)


def test_images_of_one_size_in_each_split_become_squares_if_the_splits_differ(tmp_path):
    """Else training would squash what the test cuts."""
    write_images(tmp_path / "mine" / "train", sizes=((40, 20),))
    write_images(tmp_path / "mine" / "test", sizes=((40, 20), (30, 20)))
    data = prepared(own("images", tmp_path / "mine", "data.image_size=16"))
    assert {pixels.shape[1:3] for pixels in data.pixels.values()} == {(16, 16)}


def test_grey_images_become_rgb(tmp_path):
    folder = write_images(tmp_path / "pets")
    for file in folder.rglob("*.png"):
        Image.open(file).convert("L").save(file)
    pixels = prepared(own("images", folder)).pixels["train"]
    assert pixels.shape[-1] == 3 and (pixels == pixels[..., :1]).all()


def test_only_the_most_frequent_characters_are_known(tmp_path):
    """A word with another one is [UNK]."""
    (tmp_path / "letters").mkdir()
    rows = ["aa bb ab ba aab abb", "aa bb aab", "aa zz bb"] * 400
    (tmp_path / "letters" / "train.txt").write_text("\n".join(rows))
    data = prepared(own("text", tmp_path / "letters", "data.alphabet_size=2"))
    tokenizer = Tokenizer.from_file(str(data.tokenizer_file))
    known = tokenizer.get_vocab()
    assert {"a", "b"} <= {token.removeprefix("##") for token in known}
    assert not any("z" in token for token in known)
    assert tokenizer.encode("aa zz bb").tokens[1] == "[UNK]"


def test_splits_of_ones_own_are_used_as_they_are(tmp_path):
    for split, each in zip(SPLITS, (10, 2, 3), strict=True):
        write_images(tmp_path / "pets" / split, each=each)
    indices = prepared(own("images", tmp_path / "pets")).indices
    assert {s: len(rows) for s, rows in indices.items()} == {
        "train": 30,
        "validation": 6,
        "test": 9,
    }


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def deep_png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(image=lambda i: {"bytes": png(i), "path": None}, label=lambda i: i % 3, n=30) -> bytes:
    rows = range(n)
    frame = pd.DataFrame({"image": [image(i) for i in rows], "label": [label(i) for i in rows]})
    return frame.to_parquet()


LINE = {"body": "the quick brown fox jumps over the lazy dog\n" * 9, "n": 1}
LINES = {"rows.jsonl": jsonl([LINE] * 50)}
PETS = {f"{['cat', 'dog', 'owl'][i % 3]}/{i}.png": png(i) for i in range(30)}
# kind, case, files, overrides, what the message says
BAD = [
    ("text", "no such column", LINES, [], "split train has no column text; it has body, n"),
    ("text", "numbers", LINES, ["data.text_column=n"], "column n is no text but Value"),
    ("text", "config", LINES, ["data.config=en"], "has no configuration data.config=en; it has"),
    (
        *("text", "latin-1", {"a.txt": b"a\n", "b.txt": b"caf\xe9\n"}, []),
        r"b.txt is not UTF-8 text \(byte 0xe9\); iconv",
    ),
    ("text", "no files", {}, [], "doesn't contain any data files"),
    ("text", "empty file", {"a.txt": b""}, [], "all its files are empty"),
    ("text", "blank lines", {"a.txt": b"\n" * 200}, [], "split train has no words"),
    (
        *("text", "one row", {"a.jsonl": jsonl([{"text": LINE["body"]}])}, []),
        "data.test_size=0.1: must leave some of the 1 training rows",
    ),
    (
        *("text", "null", {"train.jsonl": jsonl([{"text": "a b"}] * 9 + [{"text": None}])}, []),
        "row . has no text",
    ),
    ("text", "short", {"a.txt": b"a b\n" * 200}, [], "split validation of .* has only 60 tokens"),
    (
        "text",
        "torn",
        {"a.jsonl": LINES["rows.jsonl"] + b'{"body": "to'},
        [],
        "line 51 is not JSON: ",
    ),
    ("text", "markdown", {"a.md": b"a b"}, [], "no .txt, .csv, .json, .jsonl or .parquet file"),
    (
        *(
            "text",
            "one is a split",
            {"train.txt": b"a b\n" * 9, "b.txt": b"c\n", "c.txt": b"d\n"},
            [],
        ),
        r"2 of its files would be ignored \(b.txt, c.txt\), because others are named after",
    ),
    ("text", "test alone", {"test.txt": b"a b\n" * 200}, [], "no split train; it has test"),
    (
        *("text", "no rule", {"a.txt": b"a b\n" * 200}, ["data.test_size=null"]),
        "no split test; it has train; data.test_size=0.1 cuts one from train",
    ),
    (
        "text",
        "damaged",
        {"train.parquet": b"PAR1..."},
        [],
        r"train.parquet \(7 bytes\) is damaged",
    ),
    (
        *("images", "one folder", {f"cat/{i}.png": png(i) for i in range(9)}, []),
        "no column label; it has image; images get labels from two or more folders",
    ),
    ("images", "no files", {}, [], "doesn't contain any data files"),
    (
        *("images", "no such column", {"a.parquet": parquet()}, ["data.image_column=img"]),
        "split train has no column img; it has image, label",
    ),
    (
        *("images", "strings", {"a.parquet": parquet(label=str)}, []),
        "column label: must hold class numbers from 0 .* not Value",
    ),
    (
        *("images", "one class", {"a.parquet": parquet(label=lambda i: 0)}, []),
        "all training images have label 0; at least two are needed",
    ),
    (
        *("images", "below 0", {"a.parquet": parquet(label=lambda i: i % 3 - 1)}, []),
        "row 0: label -1 is below 0",
    ),
    (
        *("images", "gap", {"a.parquet": parquet(label=lambda i: 1 + i % 3)}, []),
        "go up to 3, and no training image has 0",
    ),
    (
        *(
            "images",
            "null label",
            {"a.jsonl": jsonl([{"image": "x", "label": 0}] * 3 + [{"image": "x", "label": None}])},
            [],
        ),
        "row 3: has no label in column label",
    ),
    (
        *("images", "unknown label"),
        {"train.parquet": parquet(), "test.parquet": parquet(label=lambda i: i)},
        [],
        "split test has label 29; training images have 0 to 2",
    ),
    ("images", "corrupt", PETS | {"cat/1.png": b"no image"}, [], r"row 1 \(.*cat/1.png\): column"),
    (
        "images",
        "truncated",
        PETS | {"dog/4.png": png(4)[:90]},
        [],
        r"\(.*dog/4.png\): column",
    ),
    ("images", "empty image", PETS | {"owl/5.png": b""}, [], r"\(.*owl/5.png\): column image"),
    (
        *("images", "16 bits", PETS | {"cat/0.png": deep_png()}, []),
        r"row 0 \(.*cat/0.png\): column .* it has the mode I;16, more than 8 bits",
    ),
    (
        *("images", "numbers", {"a.parquet": parquet(image=int)}, []),
        "row 0: column image holds no image that can be read",
    ),
    (
        *("images", "all held out", PETS, ["data.validation_size=29"]),
        "data.validation_size=29 data.test_size=0.1: must leave some of the 30 training rows",
    ),
]


@pytest.mark.parametrize(("kind", "case", "files", "overrides", "message"), BAD)
def test_bad_data_is_one_line_and_leaves_nothing(tmp_path, kind, case, files, overrides, message):
    (tmp_path / "own").mkdir()
    for name, content in files.items():
        file = tmp_path / "own" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    with pytest.raises(BadInput, match=message) as error:
        run(own(kind, tmp_path / "own", *overrides), tmp_path / "run")
    said = str(error.value)
    assert len(said.splitlines()) == 1 and len(said) < 600 and "own" in said
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob("cache/.part-*"))


def test_ones_own_data_from_training_to_report(tmp_path, capsys):
    """Named after its folder, read again from the run's folder, beside no published number."""
    write_images(tmp_path / "one" / "pets")
    write_jsonl(tmp_path / "one" / "text" / "rows.jsonl", [{"text": text} for text in DOCUMENTS])
    for kind, name in (("images", "pets"), ("text", "text")):
        cfg, folder = own(kind, tmp_path / "one" / name), tmp_path / "runs" / name
        result = run(cfg, folder)
        assert (result["data"], result["status"]) == (name, "finished")
        stored = compose.load(folder)
        assert stored.hash == cfg.hash
        assert prepared(stored).fingerprint == result["data_fingerprint"]
    report(tmp_path / "runs", tmp_path / "runs" / "report")
    text = (tmp_path / "runs" / "report" / "report.md").read_text()
    for name in ("pets", "text"):
        assert f"The paper has no experiment on {name}" in text
    other = write_images(tmp_path / "two" / "pets", each=12)
    with pytest.raises(BadInput, match=r"trained on data with fingerprint .*; .*data\.name="):
        run(own("images", other), tmp_path / "runs" / "pets")


def test_published_data_is_known_by_its_keys_not_its_name():
    def published(*overrides):
        return reference(flatten(config("scale=paper", *overrides).model_dump()))

    wikitext = "data.path=Salesforce/wikitext", "data.config=wikitext-103-v1"
    assert published("data=text", "data.name=mine", *wikitext).exact
    assert not published("data=wikitext103", "data.path=./mine").exact
    assert not published("data=wikitext2").exact
    assert published("data=text", "data.name=wikitext103", "data.path=x") is None
    assert published("data=cifar100").exact
    assert published("data=cifar100", "data.label_column=coarse_label") is None


@pytest.mark.parametrize(
    ("path", "more", "name"),
    [
        ("wikimedia/wikipedia", ["data.config=20231101.en"], "wikipedia-20231101.en"),
        ("./a folder/", [], "a-folder"),
        ("é/ü", [], "text"),
        ("x/" + "y" * 200, [], "y" * 64),
        ("embedded:pydocs", [], "pydocs"),
    ],
)
def test_data_without_a_name_is_named_after_its_path(path, more, name):
    assert config("data=text", f"data.path='{path}'", *more).data.name == name
