"""Sweeps through train.py, here and on a cluster."""

import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, SIGUSR1

import pytest
import yaml
from conftest import Halts, children, gone, parent, same_run, state, until

from attnlab import cli
from attnlab.errors import BadInput
from attnlab.runs.environment import source
from attnlab.sweeps.estimate import steps_to_go
from attnlab.sweeps.jobs import compose_jobs, with_baselines
from attnlab.sweeps.local import Crew

SMOKE = ("scale=smoke", "model.backend=eager")
SHORT = ("scale=smoke", "model=dot_product", "trainer.max_steps=100", "runtime.threads=1")


def test_a_sweep_goes_on_after_a_failure_and_repeats_nothing(train, tmp_path):
    sweep = ("-m", "scale=smoke", "runtime.device=cpu", "model.backend=triton,eager")
    for again in (False, True):
        code, out, _ = train(*sweep)
        said = [line for line in out.splitlines() if line.startswith(("job", "sweep"))]
        assert code == 1 and said.pop() == "sweep: 1 of 2 finished"
        ends = [line.split(": ")[-1].split(" after")[0] for line in said]
        assert ends == ["triton needs cuda)", "finished before" if again else "finished"]
        if not again:  # one line a job where no terminal is
            assert said[0].endswith("; 1 of 2 done, 0 running")  # how long a job takes is open
            assert said[1].endswith("; 2 of 2 done, 0 running")
        failed, finished = [line.split() for line in out.splitlines() if "  outputs/" in line]
        reason = "exit code 2 (model.backend=triton: device cpu: triton needs cuda)"
        assert failed[:-1] == [*reason.split(), "model.backend=triton"]
        assert finished[-4:-2] == ["model.backend=eager", "test/perplexity"]
    assert len(list(tmp_path.glob("outputs/*/*/*/result.json"))) == 1


def test_a_sweep_goes_on_from_collected_runs(train, tmp_path):
    run = ("data=nt", *SHORT, "trainer.max_steps=4")
    assert train(*run)[0] == 0
    kept = tmp_path / "kept" / "runs.jsonl"
    assert train("runs=outputs", f"out={kept}", script="scripts/collect.py")[0] == 0
    (result,) = tmp_path.glob("outputs/*/*/*/result.json")
    before = result.read_text()
    shutil.rmtree(tmp_path / "outputs")
    for counted in ("1; there before: 0", "0; there before: 1"):
        code, out, err = train(f"runs={kept}", script="scripts/restore.py")
        assert (code, out) == (0, f"runs restored below outputs: {counted}\n"), err
    assert result.read_text() == before
    env = result.with_name("env.json")
    env.write_text(env.read_text().replace(f'"source": "{source()}"', '"source": "0"'))
    code, out, err = train("-m", *run)
    assert code == 0 and ": finished before\n" in out, err
    assert f"sweep: of other code than this: 1; {result.parent.relative_to(tmp_path)}: was" in out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"run": "../elsewhere"}', "run ../elsewhere: lies outside of outputs"),
        ('{"run": "here"}', "run here is not whole: KeyError('env')"),
        ('{"run": 3}', "line 1 is not a run"),
        ("{", "line 1 is not JSON (Expecting property name"),
    ],
)
def test_a_file_that_holds_no_runs_is_not_restored(train, tmp_path, line, said):
    (tmp_path / "runs.jsonl").write_text(line)
    code, out, err = train("runs=runs.jsonl", script="scripts/restore.py")
    assert (code, out) == (2, "") and err.startswith("error: runs.jsonl: ") and said in err
    assert not (tmp_path / "outputs").exists()


def test_two_jobs_with_one_run_folder_are_one(tmp_path):
    """As two values that mean the same: the second would find its folder in use."""
    root = f"runtime.output_root={tmp_path}"
    layers = ("model.neural_layers=all", "model.neural_layers=[0,1]")
    assert len(compose_jobs([["scale=smoke", "arch.layers=2", root, one] for one in layers])) == 1


def test_a_baseline_of_an_earlier_code_version_does_not_count_as_finished(tmp_path):
    """A sweep that adds it checks its folder as it checks those of the jobs that were typed."""
    (job,) = compose_jobs([["data=nt", f"runtime.output_root={tmp_path}"]])
    (baseline,) = compose_jobs([[*job.overrides, "model=dot_product"]])
    baseline.path.mkdir(parents=True)
    older = baseline.cfg.model_dump() | {"code_version": 2}
    (baseline.path / "config.yaml").write_text(yaml.safe_dump(older))
    with pytest.raises(BadInput, match=r"^code_version: 2 in the run folder"):
        with_baselines([job])


def test_a_run_without_a_checkpoint_has_all_its_steps_to_go(tmp_path):
    """As one that was restored from a file of runs, which holds its curve."""
    (job,) = compose_jobs([["data=nt", "scale=smoke", f"runtime.output_root={tmp_path}"]])
    (job.path / "checkpoints").mkdir(parents=True)
    (job.path / "metrics.jsonl").write_text('{"step": 3}\n')
    assert steps_to_go(job, 1000) == job.cfg.trainer.max_steps
    (job.path / "checkpoints" / "step_000000001.pt").touch()
    assert steps_to_go(job, 1000) == job.cfg.trainer.max_steps - 1


def test_missing_data_is_said_once_before_the_first_job(train, tmp_path):
    missing = ("data=wikitext2", "data.path=/nowhere/wikitext", "seed=0,1,2", "scale=smoke")
    code, out, err = train("-m", *missing)
    assert code == 2 and "job" not in out
    assert err == "error: data.path=/nowhere/wikitext: no such folder\n"
    assert not (tmp_path / "outputs" / "wikitext2").exists()


def test_a_cluster_gets_no_job_whose_data_is_missing(train, tmp_path):
    queue = ("launcher=submitit_slurm", "hydra.launcher.cluster.cluster=local")
    missing = ("data=wikitext2", "data.path=/nowhere/wikitext", "seed=0,1", "scale=smoke")
    code, out, err = train("-m", *missing, *queue)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "error: data.path=/nowhere/wikitext: no such folder"


@pytest.mark.parametrize("signum", [SIGTERM, SIGINT, SIGHUP, SIGUSR1], ids=lambda s: s.name)
def test_a_signal_saves_the_running_job_and_ends_the_sweep(signum, start, tmp_path):
    long = ("-m", *SMOKE, "trainer.max_steps=100000", "trainer.eval_every=100000", "seed=0,1")
    halts = Halts(tmp_path, ("open a timing.jsonl", 2))
    process = start(*long, **halts.env)
    halts.wait(process)
    process.send_signal(signum)
    halts.go_on(process)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 128 + signum, err
    assert f"{signum.name}: saved at step" in err
    assert "sweep stopped; the same command continues" in out and "not started" in out
    (only,) = tmp_path.glob("outputs/*/*/*/")  # the other job has no folder
    assert list(only.glob("checkpoints/step_*.pt"))


def test_a_killed_job_does_not_stop_the_others(start, tmp_path):
    halts = Halts(tmp_path, ("open a metrics.jsonl", 2))
    process = start("-m", "data=nt", *SHORT, "seed=0,1", **halts.env)
    os.kill(halts.wait(process), signal.SIGKILL)
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 1 and "sweep: 1 of 2 finished" in out
    assert "ended by SIGKILL after" in out


def test_six_jobs_killed_twice_run_once(start, train, tmp_path):
    """Two at a time; the sweep and what it runs are killed as by a machine that goes down."""
    sweep = ("-m", "data=nt", *SHORT, "seed=0,1,2,3,4,5", "launcher=joblib")
    finished: dict[Path, float] = {}

    def results() -> dict[Path, float]:
        files = tmp_path.glob("outputs/*/*/*/result.json")
        return {f: f.stat().st_mtime for f in files if "finished" in f.read_text()}

    for more in (1, 3):
        process = start(*sweep)
        until(process, lambda more=more: len(results()) >= more)
        process.send_signal(signal.SIGSTOP)  # from here on it starts nothing, and reaps nothing
        until(process, lambda process=process: state(process.pid) == "T")
        jobs = children(process.pid)
        for pid in (*jobs, process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
        while not all(
            map(gone, jobs)
        ):  # what a killed process has asked of the disk is done first
            time.sleep(0.005)
        finished |= {file: results()[file] for file in results() if file not in finished}
    code, out, err = train(*sweep)
    assert code == 0, err
    assert len(results()) == 6 and results().items() >= finished.items()
    assert out.count("finished before  ") == len(finished) >= 3
    assert "sweep: 6 of 6 finished" in out


def test_a_key_that_only_the_swept_model_has(train, tmp_path):
    """And values in all forms that Hydra knows; neural_d2, the default, has no `layers`."""
    words = ("model=uniform", "model.layers=[0]", "runtime.output_root='a b'", "data.eval_size=64")
    words += ("trainer.micro_batch_size=null", "++trainer.lr=1e-3", "arch.ffn_width=${arch.width}")
    code, out, err = train("-m", "data=nt", *SHORT, "seed=0", *words)
    assert code == 0, err
    assert "sweep: 1 of 1 finished" in out and "a b/nt/uniform/seed0_" in out
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["a b"]
    listed = cli.jobs(["experiment=dagpam_lambda", "model=dagpam", "model.lambda_plus=1"])
    assert len(listed) == 9 and all("model.lambda_plus=1" in job for job in listed)


def test_two_sweeps_never_run_a_job_twice(start, tmp_path):
    sweep = ("-m", "data=nt", *SHORT, "seed=0,1")
    moments = [Halts(tmp_path, ("open a .lock", 1)) for _ in range(2)]
    both = [start(*sweep, **halts.env) for halts in moments]
    for halts, process in zip(moments, both, strict=True):
        halts.wait(process)
    for halts, process in zip(moments, both, strict=True):
        halts.go_on(process)
    said = [process.communicate(timeout=900)[0] for process in both]
    assert {process.returncode for process in both} <= {0, 3}
    trained = sum(out.count(": finished after") - out.count("already finished:") for out in said)
    assert trained == 2 and len(list(tmp_path.glob("outputs/*/*/*/result.json"))) == 2


def test_a_sweep_whose_last_job_runs_elsewhere_says_so(start, train, tmp_path):
    run = ("data=nt", *SHORT, "seed=0")
    halts = Halts(tmp_path, ("open a metrics.jsonl", 2))
    process = start(*run, **halts.env)
    halts.wait(process)  # it keeps its folder
    code, out, err = train("-m", *run)
    assert code == 3, err
    assert ": runs elsewhere after" in out
    assert "sweep: 0 of 1 finished, 1 elsewhere" in out
    halts.go_on(process)
    assert process.communicate(timeout=900) and process.returncode == 0


@pytest.mark.parametrize(("at_once", "seen"), [(3, ["3", "3", "5"]), (1, ["3,5"])])
def test_jobs_that_run_at_once_take_the_gpus_in_turn(at_once, seen, tmp_path, monkeypatch):
    """One alone may use all of them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    wait = f"until [ $(ls | wc -l) = {at_once} ]; do sleep 0.01; done"
    command = ["sh", "-c", f"cd {tmp_path}; echo $CUDA_VISIBLE_DEVICES > $$; {wait}"]
    crew = Crew(at_once)
    with ThreadPoolExecutor(at_once) as threads:
        ends = list(threads.map(crew.run, [command] * at_once))
    assert ends == [(0, "")] * at_once
    assert sorted(file.read_text().strip() for file in tmp_path.iterdir()) == seen


@pytest.mark.parametrize(
    ("whom", "when"), [("task", "training"), ("run", "training"), ("run", "start")]
)
def test_a_preempted_job_of_a_cluster_is_queued_again_and_resumes(
    whom, when, start, train, tmp_path
):
    """The cluster signals the job's first process before its time ends, or all of them; in
    training, or before it began.
    """
    process, halts, run, task, training = queued(start, tmp_path, when)
    os.kill({"task": task, "run": training}[whom], signal.SIGUSR1)
    halts.go_on(process)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0 and "sweep: 1 of 1 finished" in out, err
    log = "".join(file.read_text() for file in tmp_path.glob("outputs/slurm/*_log.*"))
    assert "Requeued job" in log
    assert ("continuing outputs/nt" in log) == (when == "training")
    assert train(*run, "hydra.run.dir=whole")[0] == 0
    assert same_run(tmp_path / "whole", next(tmp_path.glob("outputs/nt/*/*")))


def test_a_cancelled_job_of_a_cluster_saves_and_is_not_queued_again(start, tmp_path):
    """scancel signals every process of the job with SIGTERM."""
    process, halts, _, task, training = queued(start, tmp_path, "training")
    for pid in (task, training):
        os.kill(pid, signal.SIGTERM)
    halts.go_on(process)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 1 and "sweep: 0 of 1 finished" in out, err
    assert "exit code 143" in out
    log = "".join(file.read_text() for file in tmp_path.glob("outputs/slurm/*_log.*"))
    assert "Requeued job" not in log and "SIGTERM: saved at step" in log


def queued(start, tmp_path, when):
    """A sweep of one job on submitit's cluster of this machine, halted in training or just
    before: its process, `Halts`, the overrides, the ids of the job's task and of train.py.
    """
    run = ("data=nt", *SHORT, "trainer.save_every=1000")
    local = [f"hydra.launcher.cluster.{k}" for k in ("cluster=local", "gpus_per_node=0")]
    moment = {"training": ("open a metrics.jsonl", 20), "start": ("open a .lock", 1)}[when]
    halts = Halts(tmp_path, moment)
    process = start("-m", *run, "launcher=submitit_slurm", *local, **halts.env)
    training = halts.wait(process)
    return process, halts, run, parent(training), training


def test_a_launcher_that_could_run_nothing_is_one_line(train):
    words = ("scale=smoke", "seed=0,1", "launcher=joblib", "hydra.launcher.n_jobs=-1")
    code, _, err = train("-m", *words)
    assert code == 2
    assert err == "error: hydra.launcher.n_jobs=-1: must be an integer >= 1\n"


def test_an_experiment_is_a_sweep_with_any_launcher(train):
    words = ("experiment=ablate_hidden", "model.hidden=[2],[3]", "seed=0", "scale=smoke")
    words += ("data=nt", "trainer.max_steps=2", "trainer.eval_every=2")
    code, out, err = train(*words, "launcher=joblib", "hydra.launcher.n_jobs=2")
    assert code == 0, err
    assert out.count(": finished after") == 2


def test_no_cluster_is_one_line(train, tmp_path):
    key = "+hydra.launcher.cluster.slurm_partition=gpu"
    for name, code in (("srun", 0), ("sbatch", 1)):
        copied = f"cat $1 > {tmp_path}/submitted; echo invalid partition >&2"
        (tmp_path / name).write_text(f"#!/bin/sh\n{copied}\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    words = ("-m", "scale=smoke", "seed=0,1", "launcher=submitit_slurm", key)
    code, _, err = train(*words, PATH=path)
    assert code == 2 and "error: sbatch refuses job 1 of 2: " in err and "Traceback" not in err
    script = (tmp_path / "submitted").read_text()
    assert "#SBATCH --signal=USR1@120\n" in script  # what the job listens for, there as well
    assert "\nexport SUBMITIT_PREEMPT_SIGNAL=USR1\n" in script
    nothing = str(tmp_path / "empty")
    words = ("-m", "scale=smoke", "seed=0,1", "launcher=submitit_slurm", key)
    code, _, err = train(*words, PATH=nothing)
    assert code == 2 and err.splitlines()[-1].startswith("error: hydra.launcher.cluster: ")
    assert "slurm" in err and "Traceback" not in err


def test_a_finished_job_may_have_no_number_for_its_result(tmp_path):
    """A file of runs has null where result.json has NaN."""
    (job,) = compose_jobs([["data=nt", "scale=smoke", f"runtime.output_root={tmp_path}"]])
    job.path.mkdir(parents=True)
    (job.path / "config.yaml").write_text(yaml.safe_dump(job.cfg.model_dump()))
    (job.path / "result.json").write_text('{"status": "finished", "test/accuracy": null}')
    assert (job.finished, job.score) == (True, "")


def test_an_experiment_names_the_differences_of_the_released_code(train):
    smoke = ("scale=smoke", "data=pydocs", "seed=0", "model=dot_product,neural_d2")
    code, out, err = train("experiment=table1", *smoke, "protocol=released")
    assert code == 0, err
    assert (
        "as in the released code, model=dot_product and model=neural_d2 differ in arch.emb" in out
    )
    assert "they differ only in attention" in out and "sweep: 2 of 2 finished" in out
