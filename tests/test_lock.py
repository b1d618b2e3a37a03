"""One writer for a folder, also where machines do not see each other's kernel locks."""

import contextlib
import fcntl
import os
import threading
import time

import pytest

from attnlab.errors import FolderInUse
from attnlab.runs import lock as lock_module
from attnlab.runs.lock import STALE, Lock


@pytest.fixture
def no_kernel_lock(monkeypatch):
    """As on file systems that do not share flock between machines."""
    monkeypatch.setattr(fcntl, "flock", lambda file, operation: None)


def test_the_second_on_this_machine_is_refused(tmp_path):
    with Lock(tmp_path), pytest.raises(FolderInUse, match=f"in use by process {os.getpid()} on"):
        Lock(tmp_path).__enter__()
    with Lock(tmp_path):
        pass


def test_another_machine_is_refused_while_there_are_signs_of_life(tmp_path, no_kernel_lock):
    said = r"process \d+ on here; last sign of life \d+ s ago"
    with Lock(tmp_path, "here"), pytest.raises(FolderInUse, match=said):
        Lock(tmp_path, "there").__enter__()
    with Lock(tmp_path, "there"):
        pass


def test_what_a_killed_process_of_this_machine_left_is_taken_at_once(tmp_path):
    Lock(tmp_path)._create({"host": "here", "process": 1, "token": "gone"})
    with Lock(tmp_path, "here") as lock:
        lock.check_held()


def test_a_silent_machine_is_deposed_and_finds_out_before_it_writes(tmp_path, no_kernel_lock):
    with Lock(tmp_path, "silent") as silent:
        age(tmp_path)
        with Lock(tmp_path, "other") as other:
            other.check_held()
            with pytest.raises(FolderInUse, match="on other, which took over from this process"):
                silent.check_held()


def test_whoever_holds_a_folder_shows_signs_of_life(tmp_path, no_kernel_lock, monkeypatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT", 0.01)
    with Lock(tmp_path, "here"):
        age(tmp_path)
        old = (tmp_path / ".owner").stat().st_mtime
        while (tmp_path / ".owner").stat().st_mtime == old:
            time.sleep(0.01)
        with pytest.raises(FolderInUse, match="process"):
            Lock(tmp_path, "there").__enter__()


def test_of_many_that_depose_one_holds_the_folder(tmp_path, no_kernel_lock):
    for attempt in range(30):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        Lock(folder)._create({"host": "gone", "process": 1, "token": "gone"})
        age(folder)
        locks = [Lock(folder, f"machine {i}") for i in range(8)]
        gate = threading.Barrier(len(locks))

        def enter(lock, gate=gate):
            gate.wait()
            with contextlib.suppress(FolderInUse):
                lock.__enter__()

        threads = [threading.Thread(target=enter, args=(lock,)) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(holds(lock) for lock in locks) == 1
        for lock in locks:
            if holds(lock):
                lock.__exit__()


def holds(lock: Lock) -> bool:
    try:
        lock.check_held()
    except FolderInUse:
        return False
    return True


def age(folder) -> None:
    """Make the owner's last sign of life too old."""
    old = (folder / ".owner").stat().st_mtime - STALE - 1
    os.utime(folder / ".owner", (old, old))
