"""A long run neither grows nor leaks. ATTNLAB_STEPS sets how long (`make chaos`: 20,000)."""

import os
import time

from conftest import rows_written

STEPS = int(os.environ.get("ATTNLAB_STEPS", 1500))
EVERY = STEPS // 30  # steps of a row, an evaluation and a checkpoint


def test_memory_and_open_files_stay_flat(start, tmp_path):
    """Looked at from outside, row by row, after the first third."""
    process = start(
        *("data=nt", "scale=smoke", "model=dot_product", "runtime.threads=1"),
        *(f"trainer.max_steps={STEPS}", f"trainer.log_every={EVERY}"),
        *(f"trainer.eval_every={EVERY}", f"trainer.save_every={EVERY}", "hydra.run.dir=run"),
        *("trainer.diagnostics=true", "logger=wandb", "logger.mode=offline"),
    )
    seen = []
    while process.poll() is None:
        if rows_written(tmp_path / "run") > len(seen) and (look := usage(process.pid)):
            seen.append(look)
        time.sleep(0.005)
    _, err = process.communicate()
    assert process.returncode == 0 and len(seen) > 20, err
    late = seen[len(seen) // 3 :]
    memory, files = zip(*late, strict=True)
    print(
        f"\n{STEPS} steps: {memory[0]:.1f} to {memory[-1]:.1f} MiB resident, "
        f"{min(files)} to {max(files)} open files"
    )
    assert max(memory) - memory[0] < 8
    assert max(files) - files[0] <= 2


def usage(pid: int) -> tuple[float, int] | None:
    """Resident MiB and open files of a process; None when it has ended."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            pages = int(file.read().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, IndexError):
        return None
