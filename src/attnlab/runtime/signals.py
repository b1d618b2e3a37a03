"""A signal ends training at the next step boundary, after a save; a second one ends it at once."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@dataclass
class Stop:
    """Set by a signal; training ends at the next step boundary."""

    signum: int = 0


@contextlib.contextmanager
def stop_signals(second_acts: bool = True) -> Iterator[Stop]:
    """Turn the first stop signal into a request, and say so; the second one acts at once.

    second_acts: False under torchrun, which forwards a Ctrl-C that its processes already received
    from the terminal, and ends them itself when they take too long. It signals all of them as soon
    as one has failed, so signals are ignored after an error until the error has been reported.
    """
    stop = Stop()

    def request(signum, frame):
        stop.signum = signum
        if second_acts:
            _say(
                f"{signal.Signals(signum).name}: the run saves after this step or evaluation and "
                "ends; a second signal ends it at once"
            )
        for s in active_signals() if second_acts else ():
            signal.signal(s, signal.SIG_DFL)

    with handled_by(request, after_an_error=not second_acts):
        yield stop


@contextlib.contextmanager
def handled_by(handler: Callable, after_an_error: bool = False) -> Iterator[None]:
    """While open, stop signals call `handler`; and from then on, if an error ends it."""
    before = {s: signal.signal(s, handler) for s in active_signals()}
    try:
        yield
    except Exception:
        if after_an_error:
            before.clear()
        raise
    finally:
        for s, previous in before.items():
            signal.signal(s, previous)


@contextlib.contextmanager
def keeping_children() -> Iterator[None]:
    """Programs that this thread starts while open, such as a compiler, do not get the Ctrl-C that
    a terminal sends to them as well; this process does.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_children() -> None:
    """From now on, the end of a child process raises nothing. torch's DataLoader makes it an error
    in whatever the main thread does, which may be the handling of that very error. torch sets its
    handler once, so a later run in this process notices a loader's end by its timeout only.
    """
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except RuntimeError:  # a signal that was pending has raised it in here
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def active_signals() -> list[signal.Signals]:
    """The stop signals without those that the user chose to ignore (nohup)."""
    return [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]


def _say(line: str) -> None:
    """Write to stderr from a signal handler, which may have interrupted a write of a stream."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(sys.stderr.fileno(), f"{line}\n".encode())
