"""A killed run ends as an uninterrupted one, bit for bit; damage and other configurations are
refused.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import config, metrics

from attnlab.errors import BadInput, FolderInUse
from attnlab.folder import Ledger, RunFolder
from attnlab.run import run
from attnlab.training import checkpoint

LM = ["data=pydocs", "arch.dropout=0.1"]
IMAGES = ["data=cifar10", "data.validation_size=20", "data.path={image_rows}"]
RUN = [
    "scale=smoke",
    "trainer.max_steps=120",
    "trainer.eval_every=30",
    "trainer.save_every=7",
    "trainer.batch_size=4",
    "trainer.micro_batch_size=2",
    "runtime.threads=1",
]


def rows_written(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


@pytest.mark.parametrize(
    ("overrides", "workers"),
    [(LM, 0), (LM, 2), (IMAGES, 0), (IMAGES, 2)],
    ids=["lm", "lm-workers", "cifar", "cifar-workers"],
)
def test_killed_at_three_random_steps(overrides, workers, image_rows, start, train, tmp_path):
    overrides = [o.format(image_rows=image_rows) for o in overrides] + RUN
    code, _, err = train(*overrides, "hydra.run.dir=whole", "runtime.workers=0")
    assert code == 0, err
    killed = [f"runtime.workers={workers}", "hydra.run.dir=killed"]
    draw = random.Random(f"{overrides[0]} {workers}").randint
    for at in (3, draw(20, 50), draw(70, 115)):  # the first one before the first checkpoint
        process = start(*overrides, *killed)
        while rows_written(tmp_path / "killed") < at and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, err
    code, out, err = train(*overrides, *killed)
    assert code == 0 and out.splitlines()[-1] == "run: killed", err
    assert "from step" in err
    whole, resumed = tmp_path / "whole", tmp_path / "killed"
    assert (whole / "metrics.jsonl").read_bytes() == (resumed / "metrics.jsonl").read_bytes()
    for file in ("last.pt", "best.pt"):
        assert same_state(*(checkpoint.load(f / "checkpoints" / file) for f in (whole, resumed)))


def same_state(one, two) -> bool:
    """Equal to the last bit, through all nested containers."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same_state(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same_state, one, two))
    return one == two


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_says_how_to_continue(signum, start, train, tmp_path):
    overrides = [*LM, *RUN, "trainer.save_every=10000", "hydra.run.dir=run"]
    process = start(*overrides)
    while rows_written(tmp_path / "run") < 20:
        time.sleep(0.005)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum and "the same command continues" in err
    assert checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")["step"] >= 19
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"
    code, _, err = train(*overrides)
    assert code == 0 and "continuing run from step" in err


def test_changed_data_is_refused_and_nothing_is_touched(text_rows, cache, tmp_path):
    rows = tmp_path / "rows"
    shutil.copytree(text_rows, rows)
    data = ["data=wikitext2", f"data.path={rows}", "data.tokenizer=train"]
    cfg = config(*data, "scale=smoke", "logger=none", f"runtime.cache={cache}")
    run(cfg, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.json*")}
    split = rows / "wikitext-2-v1" / "train-00000-of-00001.parquet"
    shutil.copy(split.with_name("test-00000-of-00001.parquet"), split)
    with pytest.raises(BadInput, match="was trained on data with fingerprint"):
        run(cfg, tmp_path / "run")
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.json*")}


@pytest.fixture
def finished(cache, tmp_path):
    """A short finished run and the arguments that made it."""
    cfg = config("scale=smoke", "logger=none", f"runtime.cache={cache}", "trainer.save_every=1")
    run(cfg, tmp_path / "run")
    return cfg, tmp_path / "run"


def test_finished_run_is_not_repeated(finished, capsys):
    cfg, folder = finished
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    run(cfg, folder)
    assert "already finished" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_result_is_made_again_if_killed_just_before_it(finished):
    cfg, folder = finished
    rows = (folder / "metrics.jsonl").read_bytes()
    (folder / "result.json").unlink()
    result = run(cfg, folder)
    assert result["steps"] == 4 and (folder / "metrics.jsonl").read_bytes() == rows


def test_another_configuration_in_the_folder_is_refused_key_by_key(finished, cache):
    _, folder = finished
    other = config(
        "scale=smoke", f"runtime.cache={cache}", "trainer.save_every=1", "trainer.lr=0.5"
    )
    with pytest.raises(BadInput, match=r"^trainer.lr: 0.0003 in the run folder .*, 0.5 now$"):
        run(other, folder)


def test_second_writer_is_refused(finished):
    cfg, folder = finished
    with RunFolder(folder, cfg), pytest.raises(FolderInUse, match=f"process {os.getpid()} on"):
        RunFolder(folder, cfg).__enter__()


def test_unwritable_folder_is_refused_before_any_work(train, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = train("runtime.output_root=file/outputs", "scale=smoke")
    assert code == 2 and "is not a writable folder" in err and len(err.splitlines()) == 1


def test_every_flipped_bit_is_noticed(finished):
    _, folder = finished
    content = (folder / "checkpoints" / "last.pt").read_bytes()
    torch.load(folder / "checkpoints" / "last.pt", weights_only=True)  # still torch's own format
    path = folder / "flipped.pt"
    for at in random.Random(0).sample(range(8 * len(content)), 300):
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        with pytest.raises(checkpoint.Damaged):
            checkpoint.load(path)


@pytest.mark.parametrize("keep", [0, 1, 1000])
def test_truncated_checkpoint_falls_back_to_the_one_before(finished, keep, caplog):
    _, folder = finished
    last = folder / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:keep])
    state = checkpoint.load_newest(folder / "checkpoints")
    assert state["step"] == 3 and "last.pt" in caplog.text
    (folder / "checkpoints" / "previous.pt").write_bytes(b"")
    with pytest.raises(BadInput, match="no whole checkpoint is left"):
        checkpoint.load_newest(folder / "checkpoints")


def test_checkpoint_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    path = tmp_path / "evil.pt"
    path.write_bytes(checkpoint.dump({"model": Evil()}))
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        checkpoint.load(path)
    assert not (tmp_path / "owned").exists()


def test_torn_last_row_is_written_again(tmp_path):
    ledger = Ledger(tmp_path / "metrics.jsonl")
    for step in range(5):
        ledger.append({"step": step, "train/loss": step / 3})
    whole = ledger.path.read_text()
    ledger.path.write_text(whole + '{"step": 5, "tra')
    ledger.rewind(3)
    assert ledger.path.read_text() == "".join(whole.splitlines(keepends=True)[:4])
    assert [row["step"] for row in metrics(tmp_path)] == [0, 1, 2, 3]
