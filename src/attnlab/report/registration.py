"""When a question was registered, by git: its last change, which runs are older than that, and
what its experiment was at a run's commit.
"""

import functools
import re
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from attnlab.config.compose import CONFIGS
from attnlab.config.question import Question, question_in
from attnlab.errors import BadInput
from attnlab.runs.environment import git


@dataclass(frozen=True)
class Registration:
    """The commit that last changed a question, and its date; None where git does not know it, or
    where the question as it is now is not committed (`pending`).
    """

    commit: str | None = None
    date: str | None = None
    pending: bool = False

    def precedes(self, commit: str) -> bool | None:
        """Whether the question was there at a run's commit; None if that cannot be said."""
        if self.pending:
            return False
        if self.commit is None or not _is_commit(commit):
            return None
        return _is_ancestor(self.commit, commit)


def _is_commit(name: str) -> bool:
    return bool(re.fullmatch(r"[0-9a-f]{7,64}", name))


@functools.cache
def _is_ancestor(old: str, new: str) -> bool | None:
    """None if git does not know the newer commit."""
    if git("cat-file", "-e", f"{new}^{{commit}}") is None:
        return None
    return git("merge-base", "--is-ancestor", old, new) is not None


def registration(experiment: str, question: Question) -> Registration:
    """Of an experiment's question: the oldest commit from which on it has been as it is now."""
    file = f"configs/experiment/{experiment}.yaml"
    log = git("log", "--format=%H %cs", "--", file)
    if not log:
        return Registration()
    found = Registration(pending=True)
    for line in log.splitlines():  # the newest first
        commit, date = line.split()
        if _question_at(commit, file) != question:
            break
        found = Registration(commit, date)
    return found


def _question_at(commit: str, file: str) -> Question | None:
    """The question in that version of the file; None if the file had no question, or one that
    today's schema refuses.
    """
    try:
        return question_in(git("show", f"{commit}:{file}") or "{}")
    except BadInput:
        return None


@functools.cache
def configs_at(commit: str) -> Path:
    """The folder of configurations as a commit has it, which is there until this process ends;
    today's if git does not know the commit.
    """
    tar = Path(_scratch().name, f"{commit}.tar")
    if not _is_commit(commit) or git("archive", "-o", str(tar), commit, "configs") is None:
        return CONFIGS
    with tarfile.open(tar) as packed:
        packed.extractall(tar.with_suffix(""), filter="data")
    return tar.with_suffix("") / "configs"


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="attnlab-configs-")
