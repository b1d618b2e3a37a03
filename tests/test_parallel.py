"""Several processes by torchrun train as one does, and are killed and resumed like one."""

import os
import signal

import torch
from conftest import Halts, children, metrics, same_run

RUN = [
    "scale=smoke",
    "trainer.max_steps=50",
    "trainer.eval_every=20",
    "trainer.save_every=10",
    "trainer.batch_size=8",
    "runtime.device=cpu",
    "runtime.threads=1",
]


def test_two_processes_train_as_one(train, tmp_path):
    """To the bit as one that accumulates over the same micro-batches; else as sums round."""
    whole, half = "trainer.micro_batch_size=null", "trainer.micro_batch_size=4"
    for name, micro, processes in (("one", whole, 1), ("halves", half, 1), ("two", whole, 2)):
        run = [*RUN, "arch.dropout=0", micro, f"hydra.run.dir={name}"]
        code, _, err = train(*run, processes=processes)
        assert code == 0, err
    read = {name: (tmp_path / name / "metrics.jsonl").read_bytes() for name in ("halves", "two")}
    assert read["halves"] == read["two"]
    one, two = ([r for r in metrics(tmp_path / n) if "train/loss" in r] for n in ("one", "two"))
    assert (
        len(one) == 50
        and max(off(a, b, "train/loss") for a, b in zip(one, two, strict=True)) < 1e-6
    )
    one, two = (metrics(tmp_path / name)[-1] for name in ("one", "two"))
    assert off(one, two, "test/loss") < 1e-6  # every sample of the split once
    code, _, err = train(*RUN, "arch.dropout=0", whole, "hydra.run.dir=one", processes=2)
    assert code == 0 and "was made by 1 process(es), now there are 2, which draws other" in err


BUFFERS = """
import torch
from attnlab.runtime import distributed

with distributed.process_group(torch.device("cpu")):
    module = torch.nn.Linear(1, 1)
    module.register_buffer("constant", torch.tensor(distributed.rank()))
    model = distributed.wrap_ddp(module)
    module.constant.fill_(distributed.rank())
    model(torch.ones(1, 1))
    torch.save(module.constant, f"{distributed.rank()}.pt")
"""


def test_buffers_are_not_sent(start, tmp_path):
    """They are constants, and DistributedDataParallel would send them with every forward. (Newer
    versions of torch send them once at the start.)
    """
    (tmp_path / "buffers.py").write_text(BUFFERS)
    process = start(script=str(tmp_path / "buffers.py"), processes=2)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert [int(torch.load(tmp_path / f"{rank}.pt")) for rank in range(2)] == [0, 1]


def off(one: dict, other: dict, key: str) -> float:
    """Relative difference of a value in two rows."""
    return abs(one[key] / other[key] - 1)


def test_one_of_three_processes_is_killed(start, train, tmp_path):
    """Of three numbers, unlike of two, the sum depends on the order."""
    for name in ("whole", "killed"):
        run = [*RUN, "trainer.batch_size=6", "arch.dropout=0.1", f"hydra.run.dir={name}"]
        if name == "killed":
            halts = Halts(tmp_path, ("open a metrics.jsonl", 25))
            process = start(*run, processes=3, **halts.env)
            first = halts.wait(process)
            ranks = children(process.pid)
            os.kill(next(pid for pid in ranks if pid != first), signal.SIGKILL)
            halts.go_on(process)
            _, err = process.communicate(timeout=900)
            assert process.returncode and "another of the 3 processes ended" in err, err
            assert not any(alive(pid) for pid in ranks)
            code, _, err = train(*run)
            assert code == 2 and "was trained by 3 process(es), now there are 1" in err
        code, _, err = train(*run, processes=3)
        assert code == 0, err
    assert "continuing killed from step 20" in err
    assert same_run(tmp_path / "whole", tmp_path / "killed")


def test_bad_data_under_torchrun_is_one_line(train, tmp_path):
    """The main process finds it, while the other one waits for the data."""
    code, _, err = train("data=text", "data.path=/nowhere/x", "scale=smoke", processes=2)
    assert code and err.count("error: data.path=/nowhere/x: no such folder") == 1, err
    assert "Error executing job" not in err and list(tmp_path.iterdir()) == []


def test_what_ends_a_process_that_is_not_the_first_is_said_once(start, tmp_path):
    """A process that loads data for the second one is killed."""
    halts = Halts(tmp_path, ("open a metrics.jsonl", 10))
    words = (*RUN, "runtime.workers=1", "hydra.run.dir=run")
    process = start(*words, processes=2, **halts.env)
    first = halts.wait(process)
    (second,) = (pid for pid in children(process.pid) if pid != first)
    os.kill(children(second)[-1], signal.SIGKILL)
    halts.go_on(process)
    _, err = process.communicate(timeout=900)
    assert process.returncode and err.count("error: a process that loads data") == 1, err


def test_a_rank_of_another_launcher_hides_nothing(train):
    """As srun and mpirun may leave it in the environment."""
    code, _, err = train("model=nope", RANK="1", LOCAL_RANK="1")
    assert code == 2 and err.startswith("error: model=nope: unknown model")


def test_a_batch_that_does_not_divide_is_refused_in_one_line(train, tmp_path):
    code, _, err = train(*RUN, "trainer.batch_size=9", "hydra.run.dir=run", processes=2)
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code and not (tmp_path / "run").exists()
    assert said == ["error: trainer.batch_size=9: must be a multiple of the 2 processes"]


def test_a_sweep_is_not_for_several_processes(train, tmp_path):
    code, _, err = train("-m", *RUN, "seed=0,1", processes=2)
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code and len(said) == 1 and "torchrun starts one run" in said[0]
    assert not (tmp_path / "outputs").exists()


def alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")
