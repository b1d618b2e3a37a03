"""Data: every sample once and at its time, caches that follow content, errors that name the
place.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SIZES, Halts, config, prepared, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from attnlab.data.cache import cached
from attnlab.data.images import build_images
from attnlab.data.loader import Order, eval_loader, train_loader
from attnlab.data.text import Blocks, TextData, build_text
from attnlab.errors import BadInput


def text_data(tokens: int, block: int, stride: int) -> TextData:
    ids = {split: np.arange(tokens) for split in ("train", "validation", "test")}
    return TextData(ids, {}, tokens, Path(), "", block, stride)


@settings(max_examples=200)
@given(st.integers(2, 400), st.integers(1, 50), st.data())
def test_every_token_is_scored_once(tokens, block, data):
    """Whatever window and stride: each token but the first is a fresh target exactly once."""
    block = min(block, tokens - 1)
    stride = data.draw(st.integers(1, block))
    windows = text_data(tokens, block, stride).evaluation("test")
    _, targets, overlap = windows.__getitems__([(0, i) for i in range(len(windows))])
    fresh = torch.arange(block) >= overlap[:, None]
    assert sorted(targets[fresh].tolist()) == list(range(1, tokens))


@settings(max_examples=100)
@given(st.integers(10, 400), st.integers(1, 9))
def test_training_blocks_share_no_token(tokens, block):
    blocks = text_data(tokens, block, 1).train()
    inputs, targets, _ = blocks.__getitems__([(0, i) for i in range(len(blocks))])
    assert torch.equal(targets, inputs + 1)
    assert inputs[:, 0].tolist() == list(range(0, tokens - block, block + 1))


@settings(max_examples=100)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.integers(0, 300), st.integers(0, 100))
def test_order_is_a_function_of_position(n, seed, start, count):
    """Any stretch of any epoch can be asked for alone; each epoch is a permutation."""
    whole = Order(n, seed).keys(0, start + count)
    assert Order(n, seed).keys(start, start + count) == whole[start:]
    epoch = Order(n, seed).keys(2 * n, 3 * n)
    assert sorted(epoch) == [(2, i) for i in range(n)]


def test_seeds_and_epochs_mix_differently():
    keys = [
        tuple(i for _, i in Order(50, s).keys(50 * e, 50 * e + 50)) for s in (0, 1) for e in (0, 1)
    ]
    assert len(set(keys)) == 4


def test_augmentation_depends_on_seed_epoch_and_index_alone(cache):
    images = prepared(config("data=digits", f"runtime.cache={cache}")).train()
    alone = images.__getitems__([(3, 7)])[0]
    torch.manual_seed(99)
    among = images.__getitems__([(0, 7), (3, 7), (3, 8)])[0]
    assert torch.equal(alone[0], among[1])
    assert not torch.equal(among[0], among[1])
    other = prepared(config("data=digits", "seed=1", f"runtime.cache={cache}")).train()
    assert not torch.equal(other.__getitems__([(3, 7)])[0], alone)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_starts_anywhere(cache, workers):
    sizes = ("trainer.batch_size=6", "trainer.micro_batch_size=3")
    cfg = config("data=digits", "scale=smoke", f"runtime.cache={cache}", *sizes)
    data = prepared(cfg)
    whole, part = (
        list(train_loader(data, cfg.trainer, cfg.seed, steps, workers))
        for steps in (range(5), range(3, 5))
    )
    assert len(whole) == 10 and len(part) == 4
    for ours, theirs in zip(part, whole[6:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_splits_are_disjoint_and_the_same_for_all_seeds(image_rows, cache):
    overrides = ["data=cifar10", f"data.path={image_rows}", "data.validation_size=20"]
    splits = [build_images(config(*overrides).data, seed, cache).indices for seed in (0, 1)]
    for name in ("train", "validation", "test"):
        assert np.array_equal(splits[0][name], splits[1][name])
    train, held = set(splits[0]["train"].tolist()), set(splits[0]["validation"].tolist())
    assert not train & held and len(train | held) == SIZES["image"]["train"]


def test_images_are_read_as_they_are(image_rows, cache):
    import pyarrow.parquet as pq
    from PIL import Image

    cfg = config(
        "data=cifar10",
        f"data.path={image_rows}",
        "data.image_size=32",
        "arch.patch_size=4",
        "data.validation_size=20",
    )
    data = build_images(cfg.data, 0, cache)
    table = pq.read_table(image_rows / "plain_text" / "test-00000-of-00001.parquet")
    import io

    first = np.asarray(Image.open(io.BytesIO(table["img"][0].as_py()["bytes"])))
    pixels, labels = next(iter(eval_loader(data, "test", 40)))
    restored = ((pixels[0].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8)
    assert np.array_equal(restored.numpy(), first)
    assert labels.tolist() == [i % 10 for i in range(40)]


def wikitext(folder, cache, *overrides):
    cfg = config(
        "data=wikitext2", f"data.path={folder}", "data.tokenizer=train", "scale=smoke", *overrides
    )
    return build_text(cfg.data, cache)


def test_every_line_ends_in_the_token_stream(text_rows, cache, tmp_path):
    """Blank lines too: the authors' lines, applied to the raw file that the rows were made from,
    give the same ids; words counted are words and line ends in the stream.
    """
    from datasets import load_dataset
    from tokenizers import Tokenizer

    data = wikitext(text_rows, cache)
    tokenizer = Tokenizer.from_file(str(data.tokenizer_file))
    rows = load_dataset(str(text_rows), "wikitext-2-v1", cache_dir=str(tmp_path / "hub"))
    for split, n in SIZES["text"].items():
        raw = tmp_path / f"{split}.tokens"
        raw.write_text("".join(row or " \n" for row in rows[split]["text"]))
        with open(raw) as file:
            lines = [
                line.strip(" ").replace("\n", "[SEP]").replace("<unk>", "[UNK]") for line in file
            ]
        ids = [i for line in lines for i in tokenizer.encode(line, add_special_tokens=False).ids]
        assert data.tokens[split].tolist() == ids
        names = [tokenizer.id_to_token(i) for i in ids]
        assert names.count("[SEP]") == len(lines) == n + SIZES["blank"]
        assert "[UNK]" in names
        ends = names.count("[SEP]")
        words = sum(not name.startswith("##") for name in names) - ends
        assert data.words[split] == words + ends == 12 * n + ends


def test_cache_follows_content_not_time(text_rows, tmp_path, cache):
    """Changed content of the same size and time is read anew."""
    import os
    import shutil

    folder = tmp_path / "rows"
    shutil.copytree(text_rows, folder)
    before = wikitext(folder, tmp_path / "cache")
    file = folder / "wikitext-2-v1" / "test-00000-of-00001.parquet"
    times = file.stat().st_mtime_ns
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [" w1 w2 w3 \n"] * 80}), file)
    os.utime(file, ns=(times, times))
    after = wikitext(folder, tmp_path / "cache")
    assert after.fingerprint != before.fingerprint
    assert len(after.tokens["test"]) != len(before.tokens["test"])


def test_damaged_cache_is_prepared_again(text_rows, tmp_path):
    before = wikitext(text_rows, tmp_path)
    tokens = before.tokens["train"].copy()
    file = before.tokenizer_file.parent / "train.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert file.parent.stat().st_mode & 0o777 == 0o755  # others may share the cache
    assert np.array_equal(wikitext(text_rows, tmp_path).tokens["train"], tokens)


def test_local_tokenizer_file(text_rows, cache, tmp_path):
    """Whose truncation and padding, as other libraries save them, are not for a stream."""
    trained = wikitext(text_rows, cache)
    tokenizer = Tokenizer.from_file(str(trained.tokenizer_file))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = wikitext(text_rows, tmp_path, f"data.tokenizer={tmp_path}/tokenizer.json")
    assert np.array_equal(again.tokens["train"], trained.tokens["train"])


def test_ids_of_a_tokenizer_may_have_gaps(text_rows, tmp_path):
    vocabulary = {"[UNK]": 0, "[SEP]": 70_000}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["[SEP]"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    data = wikitext(text_rows, tmp_path, f"data.tokenizer={tmp_path}/tokenizer.json")
    assert data.vocab == 70_001 and data.tokens["train"].max() == 70_000


def test_two_processes_prepare_the_same_data_at_once(text_rows, tmp_path, start):
    script = tmp_path / "prepare.py"
    script.write_text(
        f"import sys; sys.path.insert(0, '{ROOT / 'tests'}');"
        "from test_data import wikitext; from pathlib import Path;"
        f"print(wikitext('{text_rows}', Path('{tmp_path}')).tokens['train'].sum())"
    )
    moments = [Halts(tmp_path, ("open w manifest.json", 1)) for _ in range(2)]
    processes = [start(script=str(script), **halts.env) for halts in moments]
    for halts, process in zip(moments, processes, strict=True):
        halts.wait(process)
    for halts, process in zip(moments, processes, strict=True):
        halts.go_on(process)
    sums = [p.communicate(timeout=900)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0] and sums[0] == sums[1]
    assert len(list(tmp_path.glob("wikitext2-*"))) == 1
    assert not list(tmp_path.glob(".part-*"))


def bad_rows(tmp_path, **splits):
    write_rows(tmp_path / "rows", "wikitext-2-v1", splits)
    return tmp_path / "rows"


GOOD = {"text": [" one two three \n"] * 60}


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": GOOD, "test": GOOD}, "no split validation; it has train, test"),
        ({"train": GOOD, "validation": {"txt": ["a"]}, "test": GOOD}, "column names don't match"),
        (
            {s: {"txt": ["a"]} for s in ("train", "validation", "test")},
            "no column text; it has txt",
        ),
        ({s: {"text": [1, 2]} for s in ("train", "validation", "test")}, "is no text but"),
        ({"train": GOOD, "validation": {"text": []}, "test": GOOD}, "validation-.* has no rows"),
        ({"train": GOOD, "validation": {"text": [""]}, "test": GOOD}, "validation has no words"),
        (
            {"train": GOOD, "validation": {"text": [" a \n", None]}, "test": GOOD},
            "row 1 has no text",
        ),
        (
            {"train": GOOD, "validation": {"text": [" a \n"]}, "test": GOOD},
            "data.sequence_length=64",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path, splits, message):
    with pytest.raises(BadInput, match=message):
        wikitext(bad_rows(tmp_path, **splits), tmp_path / "cache")


def test_truncated_parquet_is_named(tmp_path, text_rows):
    import shutil

    folder = tmp_path / "rows"
    shutil.copytree(text_rows, folder)
    file = folder / "wikitext-2-v1" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadInput, match=r"train-00000.*\(100 bytes\) is damaged"):
        wikitext(folder, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("wikitext2-*"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.path=/nowhere/at/all", "no such folder"),
        ("data.path={root}/README.md", "is a file, not a folder"),
        ("data.tokenizer=./missing.json", "no such file"),
        ("data.tokenizer={root}/README.md", "not a tokenizer.json"),
        ("data.sequence_length=100000", "has only"),
    ],
)
def test_missing_sources_are_named(text_rows, cache, override, message):
    with pytest.raises(BadInput, match=message):
        wikitext(text_rows, cache, override.format(root=ROOT))


def test_wrong_image_columns_are_named(image_rows, cache):
    cfg = config("data=cifar10", f"data.path={image_rows}", "data.label_column=fine_label")
    with pytest.raises(
        BadInput, match=r"^data.path=\S+: split train has no column fine_label; it has img, label$"
    ):
        prepared(cfg)


@pytest.mark.parametrize("tokenizer", ["bert-base-cased", "train"])
def test_unreachable_hub_names_the_way_out(tokenizer, train, tmp_path):
    overrides = ["data=wikitext2", f"data.tokenizer={tokenizer}", "hydra.run.dir=here"]
    code, _, err = train(*overrides, HF_ENDPOINT="http://127.0.0.1:9")
    assert code == 2 and len(err.splitlines()) == 1 and "data.path=<folder>" in err
    assert not (tmp_path / "here").exists()


def test_unwritable_cache_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"runtime.cache=.*file/x: cannot be written"):
        prepared(config(f"runtime.cache={tmp_path}/file/x"))


def test_what_a_killed_run_has_half_prepared_is_removed_a_day_later(tmp_path):
    old, new = tmp_path / ".part-old", tmp_path / ".part-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "tokens.npy").touch()
    os.utime(old, (0, 0))
    cached(tmp_path, "own", {}, lambda folder: None)
    assert not old.exists() and new.exists()


def test_a_file_that_vanished_is_not_blamed_on_the_cache(tmp_path):
    def build(folder):
        (tmp_path / "train.csv").read_text()

    with pytest.raises(BadInput, match=r"^/\S+/train.csv: No such file or directory$"):
        cached(tmp_path / "cache", "own", {}, build)


def test_blocks_are_windows_of_the_array():
    blocks = Blocks(np.arange(100, dtype=np.uint16), np.array([3, 50]), np.array([0, 2]), 4)
    inputs, targets, overlap = blocks.__getitems__([(0, 1), (9, 0)])
    assert inputs.tolist() == [[50, 51, 52, 53], [3, 4, 5, 6]]
    assert targets.tolist() == [[51, 52, 53, 54], [4, 5, 6, 7]]
    assert overlap.tolist() == [2, 0]
