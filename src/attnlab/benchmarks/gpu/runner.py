"""Runs the stages one after the other, each in processes of its own with a time limit.

The processes are forked from one that has imported torch and touched no device (a fork server), so
that a kernel that crashes or hangs ends with its stage. Every row is written as soon as it is
measured; a row that is there, of the same code, is not measured again.
"""

import contextlib
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from attnlab.benchmarks.gpu.plan import CONTEXT, STAGES, Plan, Program, smoke
from attnlab.errors import BadInput, first_line
from attnlab.runs.environment import source
from attnlab.runs.files import Ledger, slug, write_atomic

Row = dict[str, Any]


def measure(
    results: Path, scratch: Path, size: str, stages: list[str], program: Program, module: str
) -> int:
    """Run the stages; the page is written again after each. Returns how many have rows that are
    missing or failed. program: see `Plan`; module: the one that it needs. Errors: `BadInput`
    without CUDA, unless size is smoke.
    """
    # Asking whether there is a GPU must not start CUDA in the process that all others come from.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    modules = [f"attnlab.benchmarks.gpu.{stage}" for stage in STAGES]
    CONTEXT.set_forkserver_preload(["torch._dynamo", "wandb", module, *modules])
    # a process for each task: one that had asked for the card would keep memory on it
    with ProcessPoolExecutor(1, CONTEXT, max_tasks_per_child=1) as helper:
        if size == "smoke":
            plan = smoke(results / "smoke", scratch / "smoke", program)
        else:
            name, gpus = helper.submit(card).result()
            folders = results / slug(name), scratch / slug(name)
            plan = Plan("cuda", *folders, False, program, gpus=gpus)
            print(f"device: {name}")
        for folder in (plan.results, plan.scratch):
            folder.mkdir(parents=True, exist_ok=True)
        unfinished = 0
        for stage in stages:
            said, whole = run_stage(stage, plan)
            unfinished += not whole
            print(f"{stage}: {said}", flush=True)
            helper.submit(write_page, plan).result()
    print(f"page: {plan.results / 'README.md'}")
    return unfinished


def card() -> tuple[str, int]:
    """Name and number of the GPUs. Errors: `BadInput` if CUDA cannot be used."""
    import torch

    from attnlab.runtime.device import cuda_obstacle

    # ask CUDA itself: the driver may be too old
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    if not torch.cuda.is_available():
        raise BadInput(
            f"make gpu: needs an NVIDIA GPU: {cuda_obstacle()}; "
            "make gpu ARGS=size=smoke shows on the CPU that all of it works"
        )
    return torch.cuda.get_device_name(), torch.cuda.device_count()


def run_stage(name: str, plan: Plan) -> tuple[str, bool]:
    """One line on a stage, and whether all its rows are there and none has failed."""
    began, limits = time.monotonic(), STAGES[name]
    Ledger(ledger_file(name, plan)).mend()
    of = 1 if plan.smoke else max(1, min(limits.processes, (os.cpu_count() or 2) // 2))
    workers = [CONTEXT.Process(target=work, args=(name, plan, i, of)) for i in range(of)]
    ended = "finished"
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(max(0.0, began + limits.seconds - time.monotonic()))
    finally:
        for worker in (worker for worker in workers if worker.is_alive()):
            ended = f"stopped at its limit of {limits.seconds} s"
            with contextlib.suppress(ProcessLookupError):  # with the runs that it has started
                os.killpg(worker.pid, signal.SIGKILL)
            worker.kill()
            worker.join()
    if ended == "finished" and (codes := {w.exitcode for w in workers} - {0}):
        ended = f"ended with exit code {min(codes)}, see {plan.scratch / name}.log"
    rows = rows_of(name, plan)
    count = plan.scratch / f"{name}.wanted"
    wanted = count.read_text() if count.is_file() else "?"
    failed = {key: why for key, row in rows.items() if (why := _failure(row))}
    said = f"{ended} after {time.monotonic() - began:.0f} s, {len(rows)} of {wanted} rows"
    if failed:
        key, error = next(iter(failed.items()))
        said += f", {len(failed)} failed: {key}: {error}"
    return said, not failed and str(len(rows)) == wanted


def _failure(row: dict[str, Any]) -> str:
    """Why a row is not as it should be; empty if it is."""
    return row.get("error", "") or ("does not hold" if row.get("holds") is False else "")


def work(name: str, plan: Plan, number: int, of: int) -> None:
    """In a process of its own: measure every `of`-th row that is missing."""
    os.setpgid(0, 0)
    log = os.open(plan.scratch / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    fill(name, plan, number, of)


def fill(name: str, plan: Plan, number: int = 0, of: int = 1) -> None:
    """Measure the rows that are missing, or every `of`-th of them; each is written at once."""
    import torch

    # whatever the environment says of TF32 (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE)
    torch.set_float32_matmul_precision("highest")
    ledger, found, code = Ledger(ledger_file(name, plan)), rows_of(name, plan), source()
    measures = import_module(f"attnlab.benchmarks.gpu.{name}").work(plan)
    (plan.scratch / f"{name}.wanted").write_text(str(len(measures)))
    for key in list(measures)[number::of]:
        if key in found and not _failure(found[key]):
            continue
        began = time.monotonic()
        try:
            row = measures[key]()
        except Exception as error:
            print(f"{key}: {error!r}", file=sys.stderr, flush=True)
            row = {"error": first_line(error)}
        row |= {"took_s": round(time.monotonic() - began, 2)}
        ledger.append({"row": key, "code": code, **row}, sync=True)


def ledger_file(name: str, plan: Plan) -> Path:
    """Rows of a stage, one JSON object a line."""
    return plan.results / f"{name}.jsonl"


def rows_of(name: str, plan: Plan) -> dict[str, Row]:
    """The newest row of each name that this code has measured. Who changes a stage itself so that
    its rows mean something else removes its file.
    """
    code = source()
    rows = Ledger(ledger_file(name, plan)).rows()
    return {row["row"]: row for row in rows if row["code"] == code}


def write_page(plan: Plan) -> None:
    """README.md of the results: what all stages have found so far."""
    lines: list[str] = []
    for name in STAGES:
        if rows := rows_of(name, plan):
            stage = import_module(f"attnlab.benchmarks.gpu.{name}")
            whole = {key: row for key, row in rows.items() if "error" not in row}
            lines += [f"\n## {stage.TITLE}\n", *(stage.page(whole, plan) if whole else [])]
            lines += [f"- {key}: {row['error']}" for key, row in rows.items() if "error" in row]
    head = f"# make gpu on {plan.results.name}\n\nCode {source()}."
    write_atomic(plan.results / "README.md", "\n".join([head, *lines]) + "\n")
