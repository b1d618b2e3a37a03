"""A killed run ends as an uninterrupted one, bit for bit; damage and other configurations are
refused.
"""

import errno
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import Halts, config, handles, metrics, newest, rows_written, same_run
from torch.nn.modules.module import register_module_forward_pre_hook

from attnlab.config.compose import load
from attnlab.errors import BadInput, FolderInUse, Interrupted
from attnlab.models.transformer import Transformer
from attnlab.run import run
from attnlab.runs.files import Ledger
from attnlab.runs.folder import RunFolder
from attnlab.training import checkpoint

RUN = [
    "scale=smoke",
    "trainer.max_steps=120",
    "trainer.eval_every=30",
    "trainer.save_every=7",
]


def test_signals_save_and_say_how_to_continue(start, train, tmp_path):
    overrides = [*RUN, "trainer.save_every=10000"]
    folder = tmp_path / "run"
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        halts = Halts(tmp_path, ("open a metrics.jsonl", 10))
        process = start(*overrides, "hydra.run.dir=run", **halts.env)
        halts.wait(process)
        rows = rows_written(folder)
        process.send_signal(signum)
        halts.go_on(process)
        _, err = process.communicate(timeout=900)
        assert process.returncode == 128 + signum and "the same command continues" in err
        assert f"{signum.name}: the run saves after this step or evaluation" in err
        assert rows - 1 <= checkpoint.load(newest(folder))["step"] <= rows + 1
        result = json.loads((folder / "result.json").read_text())
        assert result["status"] == "interrupted"
    code, _, err = train(*overrides, "hydra.run.dir=run")
    assert code == 0 and "continuing run from step" in err
    assert train(*overrides, "hydra.run.dir=whole")[0] == 0
    assert same_run(tmp_path / "whole", folder)


def test_a_signal_in_an_evaluation_saves_after_it(tmp_path, cache):
    words = ("scale=smoke", "trainer.eval_every=2", "logger=none", f"runtime.cache={cache}")
    trained, sent = [], []

    def called(module, inputs):  # the first evaluation after a step; one comes before all steps
        if isinstance(module, Transformer):
            trained.extend([True] * module.training)
            if trained and not module.training and not sent:
                sent.append(os.kill(os.getpid(), signal.SIGTERM))

    hook = register_module_forward_pre_hook(called)
    try:
        with pytest.raises(Interrupted) as stopped:
            run(config(*words), tmp_path / "run")
    finally:
        hook.remove()
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert checkpoint.load(newest(tmp_path / "run"))["step"] == 2
    assert "val/loss" in metrics(tmp_path / "run")[-1]


def test_a_signal_while_data_is_prepared_ends_the_run_at_once(start, train, tmp_path):
    """What it had prepared is not used."""
    words = ("scale=smoke", "data.vocab_size=301")
    halts = Halts(tmp_path, ("open w manifest.json", 1))
    process = start(*words, **halts.env)
    halts.wait(process)
    process.send_signal(signal.SIGTERM)
    halts.go_on(process)
    process.communicate(timeout=900)
    assert process.returncode == -signal.SIGTERM and not (tmp_path / "outputs").exists()
    code, _, err = train(*words)
    assert code == 0 and "preparing pydocs data" in err


@pytest.mark.parametrize(
    "moment", [("open a metrics.jsonl", 7), ("os.rename step_000000006.pt", 1)]
)  # of steps 0 to 6; the last save
def test_a_signal_in_the_last_step_ends_the_run_before_its_test(start, train, tmp_path, moment):
    """Which may take long, and a cluster gives a job time for one step and one evaluation."""
    words = ("scale=smoke", "trainer.max_steps=6", "trainer.eval_every=6", "hydra.run.dir=run")
    halts = Halts(tmp_path, moment)
    process = start(*words, **halts.env)
    halts.wait(process)
    process.send_signal(signal.SIGUSR1)
    halts.go_on(process)
    process.communicate(timeout=900)
    result = tmp_path / "run" / "result.json"
    assert process.returncode == 128 + signal.SIGUSR1
    assert json.loads(result.read_text())["status"] == "interrupted"
    assert checkpoint.load(newest(tmp_path / "run"))["step"] == 6
    assert train(*words)[0] == 0 and json.loads(result.read_text())["status"] == "finished"


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_all_of_a_terminal_is_one_for_the_run(signum, start, tmp_path):
    """Its loading processes go on until the step is finished and saved."""
    words = ("runtime.workers=2", "trainer.batch_size=32", "trainer.micro_batch_size=1")
    halts = Halts(tmp_path, ("open a metrics.jsonl", 3))
    process = start(*RUN, *words, "hydra.run.dir=run", **halts.env)
    halts.wait(process)
    os.killpg(process.pid, signum)
    halts.go_on(process)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 128 + signum and "the same command continues" in err
    assert newest(tmp_path / "run") and "Traceback" not in err


def test_a_second_signal_acts_at_once(start, tmp_path):
    """The first one is obeyed: the run is about to save. The second one ends it before that."""
    halts = Halts(tmp_path, ("open a metrics.jsonl", 3), ("open w .step_*", 1))
    words = ("scale=smoke", "trainer.save_every=10000", "hydra.run.dir=run")
    process = start(*words, **halts.env)
    halts.wait(process)
    assert handles(process.pid, signal.SIGINT)
    process.send_signal(signal.SIGINT)
    halts.go_on(process)
    halts.wait(process, 1)
    assert not handles(process.pid, signal.SIGINT)
    process.send_signal(signal.SIGINT)
    halts.go_on(process, 1)
    process.communicate(timeout=900)
    assert process.returncode == -signal.SIGINT
    assert not list((tmp_path / "run" / "checkpoints").glob("*step_*"))


def test_a_signal_after_the_result_does_not_take_it_back(start, tmp_path):
    """Between the last file's new name and its being on disk."""
    halts = Halts(tmp_path, ("os.rename result.json", 1), ("open None run", 1, "wait"))
    process = start("scale=smoke", "hydra.run.dir=run", **halts.env)
    halts.go_on(process)
    halts.wait(process, 1)
    process.send_signal(signal.SIGINT)
    halts.go_on(process, 1)
    process.communicate(timeout=900)
    assert process.returncode == 128 + signal.SIGINT
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "finished"


def test_a_run_that_another_process_finished_meanwhile_is_not_repeated(start, train, tmp_path):
    """It was about to take the folder."""
    halts = Halts(tmp_path, ("open a .lock", 1))
    process = start("scale=smoke", "hydra.run.dir=run", **halts.env)
    halts.wait(process)
    assert train("scale=smoke", "hydra.run.dir=run")[0] == 0
    written = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    halts.go_on(process)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0 and "already finished" in out, err
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == written


def test_train_log_tells_all_starts_of_a_run(start, train, tmp_path):
    halts = Halts(tmp_path, ("open a metrics.jsonl", 4))
    words = ("data=nt", "scale=smoke", "trainer.save_every=1", "hydra.run.dir=run")
    process = start(*words, **halts.env)
    halts.wait(process)
    process.kill()
    process.communicate()
    code, _, err = train(*words)
    assert code == 0, err
    assert [line.partition(": ")[0] for line in err.splitlines()[:3]] == FIRST
    log = (tmp_path / "run" / "train.log").read_text()
    said = [line.split(maxsplit=2)[2] for line in log.splitlines()]  # behind date and time
    assert all(sum(line.startswith(f"{what}: ") for line in said) == 2 for what in FIRST)
    steps = [int(line.split()[1]) for line in said if line.startswith("step ")]
    assert {1, 2, 3, 4} <= set(steps) and sum("continuing run from" in line for line in said) == 1


FIRST = ["device", "precision", "W&B"]  # of what a run says


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


def test_other_data_under_the_same_relative_name_is_refused(cache, tmp_path, monkeypatch, capsys):
    """From another folder: `books` is not that `books`, though the run is finished."""
    for place, words in (("one", "to be or not to be"), ("two", "all the world is a stage")):
        (tmp_path / place / "books").mkdir(parents=True)
        text = "".join(f"{words} {i}\n" for i in range(2000))
        (tmp_path / place / "books" / "a.txt").write_text(text)
    words = ("data=text", "data.path=books", "scale=smoke", "logger=none")
    cfg, folder = config(*words, f"runtime.cache={cache}"), tmp_path / "run"
    monkeypatch.chdir(tmp_path / "one")
    run(cfg, folder)
    monkeypatch.chdir(tmp_path / "two")
    with pytest.raises(BadInput, match="data"):
        run(cfg, folder)
    monkeypatch.chdir(tmp_path / "one")
    capsys.readouterr()
    run(cfg, folder)
    assert "already finished" in capsys.readouterr().out


def test_a_run_folder_inside_the_data_is_refused(tmp_path):
    books = tmp_path / "books"
    books.mkdir()
    (tmp_path / "link").symlink_to(books)
    cfg = config("data=text", f"data.path={books}", "scale=smoke")
    for folder in (books / "run", tmp_path / "link" / "run"):
        with pytest.raises(BadInput, match="would be read as data; choose another folder"):
            RunFolder(folder, cfg).check_usable()
    assert not any(books.iterdir())


def test_data_that_was_moved_is_the_same_data(text_rows, cache, tmp_path, capsys):
    """Its content decides: a run goes on, or is finished; or is refused."""
    fixed = ["data=wikitext2", "data.tokenizer=train", "scale=smoke", "logger=none"]
    places = [tmp_path / name for name in ("here", "there", "other")]
    for place in places:
        shutil.copytree(text_rows, place)
    split = places[2] / "wikitext-2-v1" / "train-00000-of-00001.parquet"
    shutil.copy(split.with_name("test-00000-of-00001.parquet"), split)
    here, there, other = (
        config(*fixed, f"data.path={p}", f"runtime.cache={cache}") for p in places
    )
    assert here.hash == there.hash
    run(here, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    stored = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(BadInput, match="was trained on data with fingerprint"):
        run(other, tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").read_text() == stored
    assert run(there, tmp_path / "run")["status"] == "finished"
    capsys.readouterr()
    run(here, tmp_path / "run")
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(BadInput, match="was trained on data with fingerprint"):
        run(other, tmp_path / "run")


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


def test_a_start_from_step_0_puts_down_what_it_is(finished):
    """A trial of tune=lr that was killed early, started again as a run of its own."""
    cfg, folder = finished
    shutil.rmtree(folder / "checkpoints")
    (folder / "result.json").unlink()
    trial = cfg.runtime.model_copy(update={"tuning": True})
    run(cfg.model_copy(update={"runtime": trial}), folder)
    assert load(folder).runtime.tuning


def test_a_run_leaves_the_saves_of_runs_below_its_folder_alone(finished):
    cfg, folder = finished
    saves = [folder / place / ".step.pt.part" for place in ("other/checkpoints", "checkpoints")]
    for save in saves:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_bytes(b"half")
    with RunFolder(folder, cfg):
        assert [save.exists() for save in saves] == [True, False]


def test_a_run_of_other_code_is_named(finished, caplog, tmp_path):
    cfg, folder = finished
    run(cfg, folder)
    assert "other code" not in caplog.text
    env = json.loads((folder / "env.json").read_text())
    (folder / "env.json").write_text(json.dumps(env | {"source": "0123abcd"}))
    run(cfg, folder)
    assert f"other code (source 0123abcd in its env.json, now {env['source']})" in caplog.text


def test_a_finished_run_that_was_not_compiled_is_named_if_a_compiled_one_is_asked_for(
    finished, caplog
):
    cfg, folder = finished
    compiled = cfg.runtime.model_copy(update={"compile": True})
    run(cfg.model_copy(update={"runtime": compiled}), folder)
    assert "was made with runtime.compile=false, which draws other dropout masks" in caplog.text


def test_finished_run_in_a_read_only_folder_says_its_result(train, tmp_path):
    words = ("scale=smoke", "hydra.run.dir=run")
    assert train(*words)[0] == 0
    read_only = Halts(tmp_path, ("tempfile.mkstemp *", 1, "EROFS"))
    code, out, err = train(*words, **read_only.env)
    assert code == 0 and out.startswith("already finished"), err
    (tmp_path / "run" / "result.json").unlink()
    code, _, err = train(*words, **read_only.env)
    assert code == 2 and err == "error: run folder run: run is not a writable folder\n"


def test_result_is_made_again_if_killed_just_before_it(finished):
    cfg, folder = finished
    rows = (folder / "metrics.jsonl").read_bytes()
    (folder / "result.json").unlink()
    result = run(cfg, folder)
    assert result["steps"] == 4 and (folder / "metrics.jsonl").read_bytes() == rows


def test_a_damaged_result_is_one_line(finished):
    cfg, folder = finished
    file = folder / "result.json"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(BadInput, match=r"result.json: is damaged; delete it and run the"):
        run(cfg, folder)


def test_another_configuration_in_the_folder_is_refused_key_by_key(finished, cache):
    _, folder = finished
    other = config(
        "scale=smoke", f"runtime.cache={cache}", "trainer.save_every=1", "trainer.lr=0.5"
    )
    with pytest.raises(BadInput, match=r"^trainer.lr: 0.0003 in the run folder .*, 0.5 now$"):
        run(other, folder)


LOST = {  # what was in a folder and is no longer, or is damaged -> what is said
    "config.yaml": (None, "has checkpoints but no config.yaml to say of what"),
    "metrics.jsonl": (None, "metrics.jsonl: rows up to step 4 are lost"),
    "timing.jsonl": (b'{"step": 1}\n{}\n', "timing.jsonl: has a row without its step"),
}


@pytest.mark.parametrize("name", LOST)
def test_what_a_resume_needs_and_has_lost_is_one_line(finished, name):
    cfg, folder = finished
    content, message = LOST[name]
    (folder / "result.json").unlink()
    (folder / name).unlink()
    if content:
        (folder / name).write_bytes(content)
    with pytest.raises(BadInput, match=message) as refused:
        run(cfg, folder)
    assert len(str(refused.value).splitlines()) == 1


NOT_NEEDED = [("env.json", text) for text in ("[1]", "x", '{"before": "x"}', '{"before": [1]}')]


@pytest.mark.parametrize(("name", "content"), [*NOT_NEEDED, ("timing.jsonl", "")])
def test_what_a_resume_does_not_need_may_be_lost_or_damaged(finished, name, content):
    cfg, folder = finished
    (folder / "result.json").unlink()
    (folder / name).write_text(content)
    assert run(cfg, folder)["status"] == "finished"


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
    content = newest(folder).read_bytes()
    torch.load(newest(folder), weights_only=True)  # still torch's own format
    path = folder / "flipped.pt"
    for at in random.Random(0).sample(range(8 * len(content)), 300):
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        with pytest.raises(checkpoint.Damaged):
            checkpoint.load(path)


def test_a_checkpoint_that_the_disk_cannot_read_falls_back_too(finished, monkeypatch, caplog):
    _, folder = finished
    last, read = newest(folder), Path.read_bytes

    def broken(path: Path) -> bytes:
        if path == last:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", broken)
    assert checkpoint.load_newest(folder / "checkpoints")["step"] == 3
    assert f"{last} cannot be read" in caplog.text


@pytest.mark.parametrize("keep", [0, 1, 1000])
def test_truncated_checkpoint_falls_back_to_the_one_before(finished, keep, caplog):
    _, folder = finished
    last = newest(folder)
    last.write_bytes(last.read_bytes()[:keep])
    state = checkpoint.load_newest(folder / "checkpoints")
    assert state["step"] == 3 and last.name in caplog.text
    newest(folder).write_bytes(b"")
    for _ in range(2):  # nor does the next start begin at step 0
        with pytest.raises(BadInput, match="no whole checkpoint is left"):
            checkpoint.load_newest(folder / "checkpoints")


def test_keeps_the_newest_checkpoints_by_step_whatever_the_clock_says(cache, tmp_path):
    cfg = config(
        "scale=smoke",
        "logger=none",
        f"runtime.cache={cache}",
        "trainer.max_steps=6",
        "trainer.save_every=1",
        "runtime.keep_checkpoints=3",
    )
    run(cfg, tmp_path)
    kept = sorted((tmp_path / "checkpoints").glob("step_*"))
    assert [int(path.stem.removeprefix("step_")) for path in kept] == [4, 5, 6]
    os.utime(kept[0], (2e9, 2e9))
    assert checkpoint.load_newest(tmp_path / "checkpoints")["step"] == 6


def test_a_damaged_best_checkpoint_is_found_before_training_goes_on(finished):
    cfg, folder = finished
    newest(folder).unlink()
    (folder / "result.json").unlink()
    best = folder / "checkpoints" / "best.pt"
    best.write_bytes(best.read_bytes()[:-1])
    rows = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(BadInput, match=r"best.pt is not what was saved.*move the run folder away"):
        run(cfg, folder)
    assert (folder / "metrics.jsonl").read_bytes() == rows


def test_the_model_that_is_tested_is_the_one_the_result_names(finished):
    """best.pt may come after the checkpoint, and other rounding may not lead there again."""
    cfg, folder = finished
    newest(folder).unlink()
    (folder / "result.json").unlink()
    best = checkpoint.load_best(folder / "checkpoints")
    state = checkpoint.load(newest(folder))
    assert state["step"] < best["step"] == 4
    state["best"] = {"val/loss": -1.0, "step": state["step"]}  # no evaluation will beat it
    newest(folder).write_bytes(checkpoint.dump(state))
    result = run(cfg, folder)
    assert (result["best/step"], result["best/val/loss"]) == (4, best["val/loss"])


def test_checkpoint_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    path = tmp_path / "evil.pt"
    path.write_bytes(checkpoint.dump({"model": Evil()}))
    with pytest.raises(
        BadInput, match=r"evil\.pt holds more than weights and plain values: refused"
    ):
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
