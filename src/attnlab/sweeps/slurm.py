"""Jobs of a sweep as jobs of a cluster's queue, by submitit."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

from attnlab.errors import BadInput, Interrupted, first_line
from attnlab.runtime.signals import handled_by
from attnlab.sweeps.jobs import ELSEWHERE, FINISHED, Job, command, ending, summarize

PREEMPTED = "SUBMITIT_PREEMPT_SIGNAL"  # submitit: the signal before the end of a job's time
REQUEUES = 1000  # how often a job whose time ended may be queued again
POLL = 1.0  # seconds
# Exit codes of train.py on submitit's signal, when it has saved and when there was nothing to be
# saved yet. SIGTERM is not among them: it is how scancel ends a job that nobody wants any more.
INTERRUPTED = (128 + signal.SIGUSR1, -signal.SIGUSR1)


@dataclass
class Train:
    """What the queue runs: train.py in a process of its own, so that a signal for one of the two
    does not reach the other's handler.
    """

    command: list[str]
    process: subprocess.Popen | None = field(default=None, repr=False)

    def __call__(self) -> int:
        """Train; the exit code. Preempted or at the end of its time, the job is queued again."""
        # in a session of its own it gets a signal to the whole group once, from here
        self.process = subprocess.Popen(self.command, start_new_session=True)
        code = self.process.wait()
        if code in INTERRUPTED:  # the signal came to train.py directly
            signal.raise_signal(signal.Signals[f"SIG{os.environ[PREEMPTED]}"])
        return code

    def checkpoint(self):
        """Called by submitit on its signal: let train.py save, and say what is to be run again."""
        from submitit.helpers import DelayedSubmission

        if self.process and self.process.returncode is None:
            self.process.send_signal(signal.SIGUSR1)
            # not wait(): this may have interrupted one, which holds its lock
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Train(self.command))


def queue_jobs(jobs: list[Job], folder: str, cluster: str, **parameters: Any) -> int:
    """Queue all jobs that are not finished and wait for them; what it prints and returns are as
    for `local.run_jobs`.

    Errors: `BadInput` if submitit or the cluster is not there, or does not know a parameter;
    `Interrupted` by a stop signal, which names the jobs that it leaves in the queue.
    """
    os.environ[PREEMPTED] = "USR1"  # submitit reads it once, when it is imported
    try:
        import submitit
    except ImportError:
        raise BadInput(
            "launcher=submitit_slurm: needs submitit: pip install 'attnlab[slurm]'"
        ) from None
    setup = [f"export {PREEMPTED}=USR1", *parameters.pop("slurm_setup", [])]
    try:
        executor = submitit.AutoExecutor(folder, cluster, slurm_max_num_timeout=REQUEUES)
        executor.update_parameters(**parameters, slurm_setup=setup)
    except (RuntimeError, NameError, ValueError, TypeError) as error:
        raise BadInput(f"hydra.launcher.cluster: {first_line(error)}") from None
    ends = ["finished before" if job.finished else "" for job in jobs]
    before = [job.failure for job in jobs]
    labels = [f"job {number} of {len(jobs)}: {job.name}" for number, job in enumerate(jobs, 1)]
    waiting: dict[int, submitit.Job] = {}

    def leave(signum, frame):
        raise Interrupted(signum, _left(waiting))

    try:
        with handled_by(leave):
            for number, job in enumerate(jobs):
                if not ends[number]:
                    waiting[number] = executor.submit(Train(command(job)))
                    print(f"{labels[number]}: queued as {waiting[number].job_id}", flush=True)
            while waiting:
                for number in [n for n, queued in waiting.items() if queued.done()]:
                    ends[number] = _end(waiting.pop(number), jobs[number], before[number])
                    done = f"{len(jobs) - len(waiting)} of {len(jobs)} done"
                    print(f"{labels[number]}: {ends[number]}; {done}", flush=True)
                time.sleep(POLL)
    except submitit.core.utils.FailedJobError as error:
        why = str(error).strip().splitlines()[-1]
        left = "\n" + _left(waiting) if waiting else ""
        raise BadInput(f"sbatch refuses {labels[number]}: {why}{left}") from None
    return summarize(jobs, ends)


def _left(waiting: dict) -> str:
    listed = ", ".join(queued.job_id for queued in waiting.values())
    return f"still in the queue: {listed}; cancel them before the same command queues them again"


def _end(queued, job: Job, before) -> str:
    error = queued.exception()
    if error is None:
        code = queued.result()
        end = ending(code, "", job, before)
        return end if end in (FINISHED, ELSEWHERE) else f"{end}, see {queued.paths.stderr}"
    return (
        f"failed in the queue ({str(error).strip().splitlines()[-1]}), see {queued.paths.stderr}"
    )
