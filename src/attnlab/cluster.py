"""Jobs of a sweep as jobs of a cluster's queue, by submitit."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

from attnlab.errors import BadInput
from attnlab.sweep import Job, command, ending, summarize

PREEMPTED = "SUBMITIT_PREEMPT_SIGNAL"  # submitit: the signal before the end of a job's time
REQUEUES = 1000  # how often a job whose time ended may be queued again
POLL = 1.0  # seconds


@dataclass
class Train:
    """What the queue runs: train.py in a process of its own, so that a signal for one of the two
    does not reach the other's handler.
    """

    command: list[str]
    process: subprocess.Popen | None = field(default=None, repr=False)

    def __call__(self) -> int:
        """Train; the exit code. Interrupted by the cluster, the job is queued again."""
        self.process = subprocess.Popen(self.command)
        code = self.process.wait()
        if code in (128 + signal.SIGTERM, 128 + signal.SIGUSR1):  # it came to train.py directly
            signal.raise_signal(signal.Signals[f"SIG{os.environ[PREEMPTED]}"])
        return code

    def checkpoint(self):
        """Called by submitit on its signal: let train.py save, and say what is to be run again."""
        from submitit.helpers import DelayedSubmission

        if self.process.returncode is None:
            self.process.send_signal(signal.SIGUSR1)
            # not wait(): this may have interrupted one, which holds its lock
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Train(self.command))


def queue_jobs(jobs: list[Job], folder: str, cluster: str, **parameters: Any) -> int:
    """Queue all jobs that are not finished and wait for them; what it prints and returns are as
    for `sweep.run_jobs`. Interrupted, it leaves the jobs in the queue.

    Errors: `BadInput` if submitit or the cluster is not there, or does not know a parameter.
    """
    try:
        import submitit
    except ImportError:
        raise BadInput("launcher=submitit_slurm: needs submitit: pip install '.[slurm]'") from None
    os.environ[PREEMPTED] = "USR1"
    try:
        executor = submitit.AutoExecutor(folder, cluster, slurm_max_num_timeout=REQUEUES)
        executor.update_parameters(**parameters)
    except (RuntimeError, NameError, ValueError, TypeError) as error:
        raise BadInput(f"hydra.launcher.cluster: {str(error).splitlines()[0]}") from None
    ends = ["finished before" if job.finished else "" for job in jobs]
    waiting = {
        number: executor.submit(Train(command(job)))
        for number, job in enumerate(jobs)
        if not ends[number]
    }
    labels = [f"job {number} of {len(jobs)}: {job.name}" for number, job in enumerate(jobs, 1)]
    for number, queued in waiting.items():
        print(f"{labels[number]}: queued as {queued.job_id}", flush=True)
    try:
        while waiting:
            for number in [n for n, queued in waiting.items() if queued.done()]:
                ends[number] = _end(waiting.pop(number), jobs[number])
                print(f"{labels[number]}: {ends[number]}", flush=True)
            time.sleep(POLL)
    except KeyboardInterrupt:
        print(f"{len(waiting)} jobs stay in the queue; the same command looks again", flush=True)
        return 128 + signal.SIGINT
    return summarize(jobs, ends)


def _end(queued, job: Job) -> str:
    error = queued.exception()
    if error is None:
        return ending(queued.result(), job)
    return (
        f"failed in the queue ({str(error).strip().splitlines()[-1]}), see {queued.paths.stderr}"
    )
