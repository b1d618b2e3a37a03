"""A signal ends training at the next step boundary, after a save; a second one ends it at once."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@dataclass
class Stop:
    """Set by a signal; training ends at the next step boundary."""

    signum: int = 0


@contextlib.contextmanager
def stop_signals(second_acts: bool = True) -> Iterator[Stop]:
    """Turn the first stop signal into a request; the second one acts at once.

    second_acts: False under torchrun, which hands on a Ctrl-C that its processes already got from
    the terminal, and ends them itself when they take too long.
    """
    stop = Stop()

    def request(signum, frame):
        stop.signum = signum
        for s in SIGNALS if second_acts else ():
            signal.signal(s, signal.SIG_DFL)

    # what the user chose to ignore (nohup) stays ignored
    heeded = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
    before = {s: signal.signal(s, request) for s in heeded}
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
