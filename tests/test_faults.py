"""Faults inside a run: what is said, what is kept, and how it ends."""

import json
import math
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, config, metrics
from torch.nn.modules.module import register_module_forward_hook

from attnlab.errors import NonFinite
from attnlab.models.transformer import Transformer
from attnlab.run import run
from attnlab.training import checkpoint


@pytest.fixture
def broken_step():
    """Make the logits of one training step NaN: call it with the step's number."""
    handles = []

    def breaks(at: int) -> None:
        steps = [0]

        def hook(module, args, output):
            if isinstance(module, Transformer) and module.training:
                steps[0] += 1
                return output * math.nan if steps[0] == at else None

        handles.append(register_module_forward_hook(hook))

    yield breaks
    for handle in handles:
        handle.remove()


def smoke(cache, *overrides):
    return config("scale=smoke", "logger=none", f"runtime.cache={cache}", *overrides)


def test_stops_before_an_update_with_a_loss_that_is_not_finite(cache, tmp_path, broken_step):
    broken_step(3)
    said = r"step 3: loss nan.*samples of the batch: \[.*Largest activation.* in layer [01]\."
    with pytest.raises(NonFinite, match=said):
        run(smoke(cache), tmp_path)
    assert "NonFinite" in (tmp_path / "failed.txt").read_text()
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "failed"
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt")["step"] == 2


def test_layer_of_the_first_value_that_is_not_finite(cache, tmp_path):
    """At this learning rate the first update makes weights so large that activations overflow."""
    with pytest.raises(NonFinite, match=r"step 2: .*Largest activation.*(inf|nan) in layer 0\."):
        run(smoke(cache, "trainer.lr=1e38", "trainer.grad_clip=null"), tmp_path)


def test_skips_what_is_not_finite_and_counts_it(cache, tmp_path, broken_step, caplog):
    broken_step(3)
    result = run(smoke(cache, "trainer.on_nonfinite=skip"), tmp_path)
    assert result["status"] == "finished" and result["skipped_steps"] == 1
    assert "step 3: loss nan" in caplog.text and "Skipped" in caplog.text
    rows = [row for row in metrics(tmp_path) if "train/lr" in row]
    assert [row["train/skipped"] for row in rows] == [0, 0, 1, 1]
    assert [row["train/loss"] is None for row in rows] == [False, False, True, False]
    state = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    assert all(weight.isfinite().all() for weight in state["model"].values())
    updates = {int(s["step"]) for s in state["optimizer"]["state"].values()}
    assert updates == {3}  # of 4 steps


def test_a_checkpoint_from_before_a_key_continues(cache, tmp_path):
    """config.yaml and last.pt of a run that did not know trainer.on_nonfinite."""
    cfg = smoke(cache, "trainer.max_steps=4", "trainer.save_every=2")
    run(cfg, tmp_path)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    for name in ("result.json", "checkpoints/last.pt"):
        (tmp_path / name).unlink()
    previous = tmp_path / "checkpoints" / "previous.pt"
    state = checkpoint.load(previous)
    del state["skipped"]
    previous.write_bytes(checkpoint.dump(state))
    file = tmp_path / "config.yaml"
    lines = file.read_text().splitlines(keepends=True)
    old = [line for line in lines if "on_nonfinite" not in line and "diagnostics" not in line]
    assert len(old) == len(lines) - 2
    file.write_text("".join(old))
    run(cfg, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_disk_that_ends_is_one_line_and_the_old_checkpoint_stays(train, cache, tmp_path):
    words = ["scale=smoke", "trainer.max_steps=300", "trainer.save_every=100", "hydra.run.dir=run"]
    words += ["trainer.eval_every=300"]
    process = [sys.executable, str(ROOT / "train.py"), *words, f"runtime.cache={cache}"]
    process += ["logger=none"]
    assert train("scale=smoke", "hydra.run.dir=prepares_the_data")[0] == 0
    blocks = 60  # KiB: metrics fit, a checkpoint does not
    command = f"ulimit -f {blocks}; exec {shlex.join(process)}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 5, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "run/checkpoints" in line and "cannot be written (File too large)" in line
    assert "MiB are free there" in line and "Traceback" not in done.stderr
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []  # no part of a file
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "failed"
    code, _, err = train(*words)
    assert code == 0, err


def test_memory_that_ends_names_the_keys_that_need_less(train, tmp_path):
    code, _, err = train("scale=smoke", "arch.ffn_width=1000000000000", "hydra.run.dir=run")
    assert code == 5 and "Traceback" not in err
    assert "out of cpu memory, peak" in err and "trainer.micro_batch_size=4" in err
    assert "Nothing was saved yet" in err
    assert (tmp_path / "run" / "failed.txt").is_file()
