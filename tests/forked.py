"""Programs as processes of their own that need not import torch again: three seconds each."""

import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path

# The server imports these once and forks; it computes nothing, so that no thread is lost.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["forked", "attnlab.run", "attnlab.commands.train"])


def default_signals() -> None:
    """A test session in the background or under nohup ignores these; its children would too. They
    get a process group of their own, which tests can signal.
    """
    os.setpgrp()
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def finish(script: Path, words: list[str], folder: Path, env: dict[str, str], out: Path) -> int:
    """Run `python <script> <words>` in `folder` to its end; returns the exit code. What it writes
    is in out/stdout and out/stderr.
    """
    process = SERVER.Process(target=_program, args=(script, words, folder, env, out))
    process.start()
    process.join(timeout=900)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{script} {' '.join(words)}")
    return process.exitcode


def _program(script: Path, words: list[str], folder: Path, env: dict[str, str], out: Path) -> None:
    import atexit

    default_signals()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [str(script), *words]
    sys.path[0:0] = [str(script.parent)]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:  # multiprocessing leaves these out
        atexit._run_exitfuncs()
