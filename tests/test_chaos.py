"""Killed anywhere, in a save too, a run ends as the uninterrupted one, bit for bit.

ATTNLAB_KILLS sets how often each kind of run is killed (`make chaos`); without it a few times, and
not every kind.
"""

import os
import random
import signal
import time

import pytest
import torch
from conftest import Halts, config, metrics, same_run
from forked import SERVER

from attnlab.runs.files import Ledger
from attnlab.runs.folder import RunFolder
from attnlab.training import checkpoint

LONG = "ATTNLAB_KILLS" in os.environ
KILLS = int(os.environ.get("ATTNLAB_KILLS", 3))
IN_SAVE = max(1, KILLS // 4)  # so many of them
SAVES = 150 if LONG else 10  # kills of a process that does nothing else
STEPS = 120
EVALUATED = 21  # the first step that is evaluated, and saved as well
RUN = [
    "scale=smoke",
    f"trainer.max_steps={STEPS}",
    f"trainer.eval_every={EVALUATED}",
    "trainer.save_every=7",
    "trainer.batch_size=4",
    "trainer.micro_batch_size=2",
    "arch.ffn_width=1000",  # a checkpoint of a MiB: time to be killed in
    "runtime.threads=1",
]
IMAGES = ["data=cifar10", "data.validation_size=20", "data.path={image_rows}"]
KINDS = {
    "lm": ["data=pydocs", "arch.dropout=0.1"],
    "lm-workers": ["data=pydocs", "arch.dropout=0.1", "model=dagpam", "runtime.workers=2"],
    "cifar": IMAGES,
    "cifar-workers": [*IMAGES, "runtime.workers=2"],
    "nt": ["data=nt", "model=expressive", "trainer.diagnostics=true"],
}


@pytest.fixture(scope="module")
def kills():
    """How often a run was killed, and inside a save, by kind; printed at the end."""
    counts: dict[str, tuple[int, int]] = {}
    yield counts
    total, saves = (sum(column) for column in zip(*counts.values(), strict=True))
    print(f"\n{total} kills, {saves} of them inside a save: " + ", ".join(counts))


@pytest.mark.parametrize("kind", KINDS if LONG else ["lm-workers", "cifar", "nt"])
def test_killed_anywhere(kind, kills, image_rows, start, train, tmp_path):
    overrides = [*RUN, *(o.format(image_rows=image_rows) for o in KINDS[kind])]
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    code, _, err = train(*overrides, "hydra.run.dir=whole", "runtime.workers=0")
    assert code == 0, err
    draw = random.Random(kind)
    last = len(metrics(whole)) - 10
    # before the first checkpoint; between the evaluation of step 21 and its row; then anywhere
    moments = [3, EVALUATED + 1, *sorted(draw.sample(range(EVALUATED + 2, last), KILLS - 2))]
    in_save = set(draw.sample(moments[2:], IN_SAVE))
    saves = 0
    for at in moments:
        row = ("open a metrics.jsonl", max(1, at - kept(folder)))
        # in a save, its file is written and read back; else it runs, but no further than 10 rows
        written = draw.choice(["open r .step_*", "os.rename step_*"])
        then = (written, 1) if at in in_save else ("open a metrics.jsonl", 10)
        halts = Halts(tmp_path, row, then)
        process = start(*overrides, "hydra.run.dir=killed", **halts.env)
        halts.go_on(process)
        if at in in_save:
            halts.wait(process, 1)
        else:
            time.sleep(draw.uniform(0, 0.02))
        process.kill()
        _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, err
        saves += saving(folder)  # what a finished save does not leave
    assert saves >= IN_SAVE
    code, out, err = train(*overrides, "hydra.run.dir=killed")
    assert code == 0 and out.splitlines()[-1] == "run: killed", err
    assert "from step" in err
    assert same_run(whole, folder)
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert len(names) == 3 and not any(name.endswith(".part") for name in names)
    kills[kind] = len(moments), saves


def kept(folder) -> int:
    """Rows of metrics.jsonl that the next start does not write again."""
    step = newest_step(folder)
    return sum(row["step"] <= step for row in Ledger(folder / "metrics.jsonl").rows())


def newest_step(folder) -> int:
    """That of a run's newest checkpoint; -1 before there is one."""
    names = (path.stem for path in folder.glob("checkpoints/step_*.pt"))
    return max((int(name.removeprefix("step_")) for name in names), default=-1)


def test_killed_again_and_again_while_it_only_saves(tmp_path, capsys):
    """No file under a final name is ever damaged, none is lost, nothing piles up; the place for
    temporary files is another file system.
    """
    cfg, draw, reached, saves = config("scale=smoke"), random.Random(0), 0, 0
    for _ in range(SAVES):
        process = SERVER.Process(target=save_only, args=(cfg, tmp_path))
        process.start()
        while newest_step(tmp_path) <= reached:
            assert process.is_alive()
            time.sleep(0.001)
        while not saving(tmp_path):
            assert process.is_alive()
        time.sleep(draw.uniform(0, 0.03))
        process.kill()
        process.join()
        saves += saving(tmp_path)
        whole = sorted((tmp_path / "checkpoints").glob("step_*.pt"))
        steps = [checkpoint.load(path)["step"] for path in whole]
        assert len(steps) <= 3 and steps[-1] > reached
        reached = steps[-1]
    with capsys.disabled():
        print(f"\n{SAVES} kills of a process that only saves, {saves} inside, {reached} saves")
    with RunFolder(tmp_path, cfg):  # the next start clears away
        assert not saving(tmp_path)


def save_only(cfg, path) -> None:
    """Checkpoints of 8 MiB, one after another, from the newest one on."""
    os.environ["TMPDIR"] = "/dev/shm"
    with RunFolder(path, cfg) as folder:
        state = checkpoint.load_newest(folder.checkpoints) or {"step": 0}
        while True:
            step = state["step"] + 1
            state = {"step": step, "model": torch.full((2**21,), float(step))}
            checkpoint.save(folder, state, keep=2)


def saving(folder) -> bool:
    """Whether a checkpoint is being written: a part of one is there."""
    return any((folder / "checkpoints").glob(".*.part"))
