"""Programs as processes of their own that need not import torch again: eight seconds each on a
slow machine. What such a program starts with python (jobs of a sweep, ranks of torchrun) is forked
as well.
"""

import atexit
import ctypes
import gc
import importlib.util
import itertools
import multiprocessing
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path

# The server imports these once and forks; it computes nothing, so that no thread is lost.
PRELOADED = [
    "forked",
    "attnlab.run",
    "attnlab.commands.train",
    "attnlab.data.images",
    "attnlab.report.render",
    "torch._dynamo",  # by torch's optimizers at their first use
    "torch.distributed.run",
]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(PRELOADED)
HALTING = Path(__file__).parent / "halting" / "sitecustomize.py"
ZYGOTE = "zygote"  # how the kernel calls one: its comm in proc(5)
TO_GROUP = signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1  # all of a group get them
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


def default_signals() -> None:
    """A test session in the background or under nohup ignores these; its children would too. They
    get a process group of their own, which tests can signal.
    """
    os.setpgrp()
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


class Program:
    """`python <words>` in `folder`; what tests use of subprocess.Popen. What it writes is in
    out/stdout and out/stderr.
    """

    def __init__(self, words: list[str], folder: Path, env: dict[str, str], out: Path):
        self.args, self.out = words, out
        self._process = SERVER.Process(target=_program, args=(words, folder, env, out))
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


class Zygote:
    """A child that a program has from its start and that stays as it was then. It is forked for
    each python that the program starts.

    The new process becomes a child of the program as one by exec would be, which can wait for it
    and signal it: the zygote forks it and its own successor, and ends. Both are then children of
    the program, which is their subreaper (prctl(2)) for that time.
    """

    def __init__(self):
        self._exec = subprocess._fork_exec
        self._lock = threading.Lock()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if not self._pid:
            self._channel.close()
            _serve(theirs)
        theirs.close()

    def fork_exec(self, args, executables, close_fds, pass_fds, cwd, env, *rest) -> int:
        """In place of `subprocess._fork_exec`; the id of the new process."""
        stdin, _, _, stdout, _, stderr, _, _, _, new_session, *_, before, _ = rest
        program, *words = map(os.fsdecode, args)
        if program != sys.executable or "-c" in words or before:
            return self._exec(args, executables, close_fds, pass_fds, cwd, env, *rest)
        pairs = [os.fsdecode(pair).split("=", 1) for pair in env or ()]
        asked = words, dict(pairs if env else os.environ), cwd or os.getcwd(), new_session
        files = [i if file == -1 else file for i, file in enumerate((stdin, stdout, stderr))]
        with self._lock:
            _prctl(SUBREAPER, 1)
            socket.send_fds(self._channel, [pickle.dumps(asked)], files)
            started, successor = pickle.loads(self._channel.recv(1000))
            os.waitpid(self._pid, 0)
            _prctl(SUBREAPER, 0)
            self._pid = successor
        return started


def _serve(channel: socket.socket) -> None:
    """The life of a zygote, which ends with its program's."""
    for signum in TO_GROUP:
        signal.signal(signum, signal.SIG_IGN)
    _name(ZYGOTE)
    while True:
        asked, files, *_ = socket.recv_fds(channel, 2**20, 3)
        if not asked:
            os._exit(0)
        started = os.fork()
        if not started:
            channel.close()
            process = multiprocessing.get_context("fork").Process(
                target=_started, args=(*pickle.loads(asked), files)
            )
            os._exit(process._bootstrap() & 0xFF)
        for file in files:
            os.close(file)
        successor = os.fork()
        if successor:
            channel.send(pickle.dumps((started, successor)))
            os._exit(0)


def _program(words: list[str], folder: Path, env: dict[str, str], out: Path) -> None:
    default_signals()
    names = [out / "stdout", out / "stderr"]
    files = [os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in names]
    _python(words, env, folder, [0, *files])


def _started(words: list[str], env: dict[str, str], folder: str, session: bool, files) -> None:
    _name("python")
    for signum in TO_GROUP:
        signal.signal(signum, signal.SIG_DFL)
    if session:
        os.setsid()
    _python(words, env, folder, files)


def _python(words: list[str], env: dict[str, str], folder: Path | str, files: list[int]) -> None:
    """What python does with these words, in a process that has just been forked."""
    gc.freeze()  # what was imported stays; a run collects garbage as fast as outside of tests
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python does when it starts
    multiprocessing.set_start_method(None, force=True)  # Python's own for the program's processes
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 (multiprocessing has closed the other one)
    subprocess._fork_exec = Zygote().fork_exec
    if "HALTS" in env:
        spec = importlib.util.spec_from_file_location("halting", HALTING)
        sys.modules["halting"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["halting"])
    first, *sys.argv = itertools.dropwhile({"-P", "-u"}.__contains__, words)
    try:
        if first == "-m":
            sys.path[0:0] = [] if "-P" in words else [os.getcwd()]
            warnings.filterwarnings("ignore", module="runpy")  # that it was imported before
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv.insert(0, first)
            sys.path[0:0] = [str(Path(first).parent)]
            runpy.run_path(first, run_name="__main__")
    finally:  # multiprocessing leaves these out
        atexit._run_exitfuncs()


def _name(name: str) -> None:
    Path("/proc/self/comm").write_text(name)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
