"""`make gpu` on the CPU: every stage on a little of its work, with the kernels in Triton's
interpreter; and what it says where it cannot run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, config, model_of

from attnlab.benchmarks import roofline
from attnlab.benchmarks.gpu.fits import configured
from attnlab.benchmarks.gpu.model import checked
from attnlab.benchmarks.gpu.plan import STAGES
from attnlab.benchmarks.memory import modelled_peak_mib
from attnlab.runs.environment import source

pytest.importorskip("triton")


def gpu(folder: Path, *words: str) -> tuple[int, str, str]:
    """scripts/gpu.py in a folder: exit code, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "gpu.py"), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stdout, done.stderr


def rows(folder: Path, stage: str) -> list[dict]:
    file = folder / "results" / "smoke" / f"{stage}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_all_stages_and_rows_that_are_there(tmp_path):
    """A row of this code is kept; one of another code, or without its end, is measured again."""
    there = {"row": "d2_h4, fp32, forward", "code": source(), "gain": 1.0}
    there |= {"ms": {"default": 2.5}, "best": "default"}
    older = {"row": "of older code", "code": "0", "error": "old"}
    (tmp_path / "results/smoke").mkdir(parents=True)
    (tmp_path / "results/smoke/tiles.jsonl").write_text(json.dumps(there) + "\n")
    (tmp_path / "results/smoke/fits.jsonl").write_text(json.dumps(older) + '\n{"row": "cut')

    code, out, err = gpu(tmp_path, "size=smoke", "results=results")
    logs = [p.read_text() for p in (tmp_path / "outputs/gpu/smoke").glob("*.log")]
    assert code == 0, "\n".join((out, err, *logs))  # a text is printed whole
    assert [line.split(":")[0] for line in out.splitlines()] == [*STAGES, "page"]
    found = {stage: rows(tmp_path, stage) for stage in STAGES}
    assert all(row["holds"] for row in (*found["correct"], *found["logs"]))
    assert {"opcheck", "autocast", "torch_compile"} < {row["row"] for row in found["correct"]}
    assert [row["holds"] for row in found["trains"] if "holds" in row] == [True]
    assert found["tiles"] == [there] and len(found["fits"]) == 2
    page = (tmp_path / "results/smoke/README.md").read_text()
    assert all(f"\n## {stage.title()}\n" in page for stage in STAGES)
    assert "of older code" not in page
    assert (tmp_path / "results/smoke/learning_curves.png").is_file()


def test_modelled_memory_grows_with_the_batch_and_holds_the_weights():
    """Weights, gradients and Adam's two moments stay; the rest is proportional."""
    cfg = config("scale=smoke", "model=neural_d2", "trainer.grad_clip=null")
    shape = {"inputs": 64, "outputs": 64, "tokens": 32}
    params = sum(p.numel() for p in model_of(cfg, **shape).parameters())
    peaks = []
    for batch in (64, 128):
        trainer = cfg.trainer.model_copy(update={"batch_size": batch})
        peaks.append(2**20 * modelled_peak_mib(cfg.model_copy(update={"trainer": trainer}), shape))
    assert 2 * peaks[0] - peaks[1] == pytest.approx(16 * params, rel=0.5)


def test_modelled_memory_is_what_a_process_takes():
    sizes = "arch.width=192", "arch.layers=3", "data.image_size=112", "trainer.batch_size=16"
    cfg = configured("table3", "neural_d2", "trainer.precision=fp32", *sizes)
    assert checked(cfg)["percent"] == pytest.approx(0, abs=5)


def test_loops_of_machine_code_are_found_and_counted():
    code = """.L_x_0:
        /*0010*/                   FFMA R1, R2, R3, R4 ;
.L_x_1:
        /*0020*/                   FMNMX R1, R2, R3, !PT ;
        /*0030*/              @!P0 BRA `(.L_x_1) ;
        /*0040*/               @P1 BRA `(.L_x_0) ;
.L_x_2:
        /*0050*/                   BRA `(.L_x_2);"""
    lines = code.splitlines()
    assert roofline.loops(lines) == [(0, 5), (2, 4)]
    assert roofline.trips(lines[2:4], units=8) == 8
    units = map(roofline.unit, ("HMMA.16816.F32.BF16", "MUFU.EX2", "IMAD.MOV.U32", "FSETP.GT"))
    assert list(units) == ["tensor", "mufu", "fp32", "alu"]
    assert roofline.tensor_flop("HMMA.16816.F32.BF16") == 2 * 16 * 8 * 16 / 32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    code, out, err = gpu(tmp_path)
    assert (code, out) == (2, "") and list(tmp_path.iterdir()) == []
    (line,) = err.splitlines()
    assert line.startswith("error: make gpu: needs an NVIDIA GPU: ") and "size=smoke" in line
    code, _, err = gpu(tmp_path, "stages=fast,quick")
    assert code == 2 and "must be card or smoke; all or some of correct, fast, tiles" in err
