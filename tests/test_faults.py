"""Faults inside a run: what is said, what is kept, and how it ends."""

import errno
import functools
import json
import math
import os
import shlex
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, Halts, children, config, gone, metrics, newest, smoke, until
from torch.nn.modules.module import register_module_forward_hook

from attnlab.config.schema import ADDED
from attnlab.errors import NonFinite, OutOfResources
from attnlab.models.transformer import Transformer
from attnlab.run import run
from attnlab.runs.folder import RunFolder
from attnlab.runtime.signals import keeping_children
from attnlab.training import checkpoint
from attnlab.training.faults import explain
from attnlab.training.resume import with_history


@pytest.fixture
def broken_step():
    """Do something to the logits of some training steps, by default make them NaN."""
    handles = []

    def breaks(*at: int, how=lambda logits: logits * math.nan) -> None:
        steps = [0]

        def hook(module, args, output):
            if isinstance(module, Transformer) and module.training:
                steps[0] += 1
                return how(output) if steps[0] in at else None

        handles.append(register_module_forward_hook(hook))

    yield breaks
    for handle in handles:
        handle.remove()


def test_stops_before_an_update_with_a_loss_that_is_not_finite(cache, tmp_path, broken_step):
    broken_step(3)
    said = r"step 3: loss nan.*samples of the batch: \[.*Largest activation.* in layer [01]\."
    with pytest.raises(NonFinite, match=said):
        run(smoke(cache), tmp_path)
    assert "NonFinite" in (tmp_path / "failed.txt").read_text()
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "failed"
    assert checkpoint.load(newest(tmp_path))["step"] == 2


def test_stops_before_an_update_with_a_gradient_that_is_not_finite(cache, tmp_path, broken_step):
    def steep(logits):
        logits.register_hook(lambda gradient: gradient * math.inf)

    broken_step(3, how=steep)
    with pytest.raises(NonFinite, match=r"step 3: loss \d+\.\d+, gradient norm (inf|nan);"):
        run(smoke(cache), tmp_path)
    assert checkpoint.load(newest(tmp_path))["step"] == 2


def test_an_update_that_overflows_in_fp16_is_counted(cache, tmp_path, monkeypatch):
    """The scaler leaves it out, and lowers its scale until updates fit."""
    large = functools.partial(torch.amp.GradScaler, init_scale=2.0**40)
    monkeypatch.setattr(torch.amp, "GradScaler", large)
    done = run(smoke(cache, "trainer.precision=fp16", "runtime.device=cpu"), tmp_path)
    state = checkpoint.load(newest(tmp_path))["optimizer"]["state"]
    assert done["skipped_steps"] == done["steps"] - int(state[0]["step"]) > 0
    assert next(r["train/skipped"] for r in metrics(tmp_path) if "train/lr" in r) == 1


def test_says_whose_loss_is_far_above_its_running_mean(cache, tmp_path, broken_step, caplog):
    broken_step(3, 4, 5, how=lambda logits: logits * 1e4)  # one warning, not three
    assert run(smoke(cache), tmp_path)["status"] == "finished"
    said = [r.message for r in caplog.records if "times its running mean" in r.message]
    assert len(said) == 1 and "step 3: loss" in said[0] and "] (epoch 0)." in said[0]


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
    state = checkpoint.load(newest(tmp_path))
    assert all(weight.isfinite().all() for weight in state["model"].values())
    updates = {int(s["step"]) for s in state["optimizer"]["state"].values()}
    assert updates == {3}  # of 4 steps


def test_a_checkpoint_from_before_a_key_continues(cache, tmp_path):
    """config.yaml and checkpoint of a run that did not know what came later."""
    cfg = smoke(cache, "trainer.max_steps=4", "trainer.save_every=2")
    run(cfg, tmp_path)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    for path in (tmp_path / "result.json", newest(tmp_path)):
        path.unlink()
    previous = newest(tmp_path)
    state = checkpoint.load(previous)
    del state["skipped"]
    previous.write_bytes(checkpoint.dump(state))
    file = tmp_path / "config.yaml"
    lines = file.read_text().splitlines(keepends=True)
    keys = [key.split(".")[1] + ":" for key in ADDED]
    old = [line for line in lines if not any(key in line for key in keys)]
    assert len(old) == len(lines) - len(ADDED)
    file.write_text("".join(old))
    run(cfg, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def interrupted(cache, folder, *overrides):
    """Its configuration, and a folder as after a kill at step 3 of 4."""
    cfg = smoke(cache, "trainer.save_every=1", *overrides)
    run(cfg, folder)
    (folder / "result.json").unlink()
    newest(folder).unlink()
    return cfg


def test_a_folder_moved_elsewhere_continues(cache, tmp_path):
    cfg = interrupted(cache, tmp_path / "run")
    whole = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert run(cfg, tmp_path / "elsewhere")["status"] == "finished"
    assert (tmp_path / "elsewhere" / "metrics.jsonl").read_bytes() == whole


def test_another_torch_at_resume_is_said(cache, tmp_path, caplog):
    cfg = interrupted(cache, tmp_path)
    env = json.loads((tmp_path / "env.json").read_text())
    other = {"torch": "1.0", "compile": True}
    (tmp_path / "env.json").write_text(json.dumps(env | other))
    run(cfg, tmp_path)
    assert "began with torch 1.0, continues with" in caplog.text
    assert "began with compile True, continues with False: the dropout masks" in caplog.text
    now = json.loads((tmp_path / "env.json").read_text())
    assert now.pop("before") == [env | other] and now["torch"] == env["torch"]
    caplog.clear()
    (tmp_path / "result.json").unlink()
    run(cfg, tmp_path)
    assert "began with torch 1.0, continues with" in caplog.text


def test_another_environment_in_between_is_said(tmp_path, caplog):
    """It began as it is now."""
    env = {"torch": "2", "numpy": "1", "threads": 2, "device_name": "x", "compile": False}
    env |= {"torchvision": "0", "source": "s", "device": "cpu"}
    for threads in (2, 1, 2):
        caplog.clear()
        (tmp_path / "env.json").write_text(
            json.dumps(with_history(env | {"threads": threads}, tmp_path))
        )
    assert "went on with threads 1, continues with 2" in caplog.text


def test_text_needs_no_torchvision_home_or_place_for_temporary_files(train, tmp_path):
    broken = tmp_path / "packages" / "torchvision"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    paths = os.pathsep.join(filter(None, (str(broken.parent), os.environ.get("PYTHONPATH"))))
    env = {"PYTHONPATH": paths, "HOME": "/nowhere", "TMPDIR": "/nowhere"}
    env |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Pacific/Apia"}
    code, _, err = train("scale=smoke", "hydra.run.dir=text", **env)
    assert code == 0, err
    code, _, err = train("scale=smoke", "data=digits", "hydra.run.dir=images", **env)
    (line,) = err.splitlines()
    assert code == 2 and "torchvision cannot be imported (operator nms does not exist)" in line
    assert not (tmp_path / "images").exists()


def test_a_loader_that_ends_late_does_not_hide_why_the_run_failed(start, tmp_path):
    """torch's DataLoader raises an error wherever the main thread is when the signal arrives."""
    halts = Halts(tmp_path, ("os.rename result.json", 1, "wait"))
    process = start("scale=smoke", "runtime.workers=1", "trainer.lr=1e30", **halts.env)
    halts.wait(process)
    *_, loader = children(process.pid)
    os.kill(loader, signal.SIGKILL)
    until(process, lambda: gone(loader))
    halts.go_on(process)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 4 and "Traceback" not in err, err


def test_an_error_inside_a_loader_is_not_called_its_end(cache, tmp_path):
    """torch repeats it with a heading of its own; only a loader that is gone is the machine's."""
    cfg = config("scale=smoke", f"runtime.cache={cache}")
    place = (cfg, torch.device("cpu"), RunFolder(tmp_path, cfg), 1)
    heading = "Caught RuntimeError in DataLoader worker process 0.\n"
    ours = RuntimeError(f"{heading}a defect")
    assert explain(ours, *place) is ours
    memory = RuntimeError(f"{heading}can't allocate memory")
    fork = OSError(errno.ENOMEM, "Cannot allocate memory")
    for error in (memory, fork):
        assert str(explain(error, *place)).startswith("out of cpu memory")
    loading = config("scale=smoke", f"runtime.cache={cache}", "runtime.workers=2")
    said = str(explain(EOFError(), loading, *place[1:]))  # of its pipe, which says nothing
    assert "(runtime.workers=2) ended or hangs: EOFError. " in said


def test_a_killed_loader_is_one_line_and_the_run_resumes(start, train, tmp_path):
    words = ("scale=smoke", "runtime.workers=2", "trainer.max_steps=200", "hydra.run.dir=run")
    words += ("trainer.eval_every=200", "trainer.save_every=10")
    halts = Halts(tmp_path, ("open a metrics.jsonl", 20))
    process = start(*words, **halts.env)
    halts.wait(process)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    halts.go_on(process)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 5 and "Traceback" not in err, err
    assert "a process that loads data (runtime.workers=2) ended or hangs: " in err
    assert "the same command continues" in err
    assert train(*words)[0] == 0


def test_a_save_that_reads_back_wrongly_is_one_line_and_leaves_no_file(
    cache, tmp_path, monkeypatch
):
    real = os.fsync

    def spoil(descriptor):
        real(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".pt.part"):
            os.pwrite(descriptor, b"other bytes", 100)

    monkeypatch.setattr(os, "fsync", spoil)
    with pytest.raises(OutOfResources, match="reads back differently from what was written"):
        run(smoke(cache), tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_disk_that_ends_is_one_line_and_the_old_checkpoint_stays(train, cache, tmp_path):
    words = ["scale=smoke", "trainer.max_steps=300", "trainer.save_every=100", "hydra.run.dir=run"]
    words += ["trainer.eval_every=300"]
    process = [sys.executable, str(ROOT / "train.py"), *words, f"runtime.cache={cache}"]
    process += ["logger=none"]
    assert train("scale=smoke", "hydra.run.dir=prepares_the_data")[0] == 0

    def limited(blocks: int) -> subprocess.CompletedProcess:
        """Files may have so many KiB."""
        command = f"ulimit -f {blocks}; exec {shlex.join(process)}"
        return subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=900
        )

    done = limited(3)  # config.yaml fits, tokenizer.json does not
    assert done.returncode == 5 and "Traceback" not in done.stderr, done.stderr
    assert "run/tokenizer.json: cannot be written (File too large)" in done.stderr
    done = limited(60)  # metrics fit, a checkpoint does not
    assert done.returncode == 5, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "run/checkpoints" in line and "cannot be written (File too large)" in line
    assert "MiB are free there" in line and "Traceback" not in done.stderr
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []  # no part of a file
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "failed"
    code, _, err = train(*words)
    assert code == 0, err


def test_a_log_on_a_full_disk_does_not_end_the_run(cache, tmp_path, caplog):
    caplog.set_level("INFO", "attnlab")
    (tmp_path / "train.log").symlink_to("/dev/full")
    assert run(smoke(cache), tmp_path)["status"] == "finished"


def test_a_terminals_interrupt_reaches_no_compiler():
    """Ctrl-C signals ptxas as well, whose end would be the run's failure instead of its save."""

    def interrupted() -> int:
        default = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        return subprocess.run(["sh", "-c", "kill -INT $$"], preexec_fn=default).returncode

    with keeping_children():
        assert interrupted() == 0
    assert interrupted() == -signal.SIGINT


def test_memory_that_ends_names_the_keys_that_need_less(cache, tmp_path, broken_step):
    broken_step(1, how=lambda logits: torch.empty(2**50))
    with pytest.raises(OutOfResources) as ended:
        run(smoke(cache), tmp_path)
    said = str(ended.value)
    assert "out of cpu memory, peak" in said and "trainer.micro_batch_size=4" in said
    assert "try trainer.micro_batch_size=2, which draws other dropout masks" in said
    assert "Nothing was saved yet" in said


def test_memory_that_a_model_does_not_fit_into_is_one_line(train, tmp_path):
    """A smaller micro-batch would not help."""
    words = ("scale=smoke", "arch.width=1024", "arch.ffn_width=2000000000", "hydra.run.dir=run")
    code, _, err = train(*words)
    assert code == 5 and "Traceback" not in err and "micro_batch_size" not in err
    assert "before the model was there: a smaller arch.width, arch.ffn_width," in err
    assert (tmp_path / "run" / "failed.txt").is_file()
