"""Programs as processes of their own that need not import torch again: four seconds each."""

import gc
import importlib.util
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

# The server imports these once and forks; it computes nothing, so that no thread is lost. The last
# one is what torch's optimizers import at their first use.
SERVER = multiprocessing.get_context("forkserver")
PRELOADED = ["forked", "attnlab.run", "attnlab.commands.train", "torch._dynamo"]
SERVER.set_forkserver_preload(PRELOADED)
HALTING = Path(__file__).parent / "halting" / "sitecustomize.py"


def default_signals() -> None:
    """A test session in the background or under nohup ignores these; its children would too. They
    get a process group of their own, which tests can signal.
    """
    os.setpgrp()
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


class Program:
    """`python <script> <words>` in `folder`; what tests use of subprocess.Popen. What it writes is
    in out/stdout and out/stderr.
    """

    def __init__(
        self, script: Path, words: list[str], folder: Path, env: dict[str, str], out: Path
    ):
        self.args, self.out = [str(script), *words], out
        self._process = SERVER.Process(target=_program, args=(script, words, folder, env, out))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return (self.out / "stdout").read_text(), (self.out / "stderr").read_text()

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _program(script: Path, words: list[str], folder: Path, env: dict[str, str], out: Path) -> None:
    import atexit

    gc.freeze()  # what was imported stays; a run collects garbage as fast as outside of tests
    default_signals()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python does when it starts
    multiprocessing.set_start_method(None, force=True)  # Python's own for the program's processes
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if "HALTS" in env:
        spec = importlib.util.spec_from_file_location("halting", HALTING)
        sys.modules["halting"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["halting"])
    sys.argv = [str(script), *words]
    sys.path[0:0] = [str(script.parent)]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:  # multiprocessing leaves these out
        atexit._run_exitfuncs()
