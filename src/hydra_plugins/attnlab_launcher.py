"""Hydra finds launchers in this namespace package; configs/launcher says what each is given."""

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher


class SweepLauncher(Launcher):
    """Every job of a sweep in a process of its own: on this machine, `n_jobs` at a time
    (attnlab.sweeps.local), or, given a `cluster`, as jobs of its queue (attnlab.sweeps.slurm).
    """

    def __init__(self, n_jobs: int = 1, cluster=None):
        self.n_jobs, self.cluster = n_jobs, cluster

    def setup(self, *, hydra_context, task_function, config) -> None:
        """Hydra's; nothing of it is needed."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs; exits with the sweep's code if any did not finish."""
        from attnlab.config.tuning import tuning_of
        from attnlab.errors import BadInput
        from attnlab.runtime.exits import exit_on_failure
        from attnlab.sweeps.jobs import compose_jobs
        from attnlab.sweeps.tuning import tune, without_tuning

        GlobalHydra.instance().clear()  # of the sweep: jobs are composed on their own
        with exit_on_failure():
            if not isinstance(self.n_jobs, int) or self.n_jobs < 1:
                raise BadInput(f"hydra.launcher.n_jobs={self.n_jobs}: must be an integer >= 1")
            tuning = tuning_of(list(job_overrides[0]))
            jobs = compose_jobs(without_tuning(job_overrides))
            if any(o.startswith("experiment=") for o in job_overrides[0]):
                from attnlab.sweeps.pairing import check_arms

                check_arms(jobs)
            code = tune(jobs, tuning, self._run) if tuning else self._run(jobs)
        if code:
            raise SystemExit(code)
        return []

    def _run(self, jobs: list) -> int:
        """Run or queue jobs; the sweep's exit code."""
        from attnlab.sweeps.prepare import prepare

        prepare(job.cfg for job in jobs if not job.finished)
        if self.cluster:
            from attnlab.sweeps.slurm import queue_jobs

            return queue_jobs(jobs, **self.cluster)
        from attnlab.sweeps.local import run_jobs

        return run_jobs(jobs, self.n_jobs)


ConfigStore.instance().store(
    group="hydra/launcher",
    name="sweep",
    node={"_target_": f"{__name__}.{SweepLauncher.__name__}"},
)
