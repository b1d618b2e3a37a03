"""The data section of tasks made of symbols: one class for each kind of task (docs/tasks.md)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from attnlab.config.types import MAX_SIZE, Count, PositiveInt, Section

Level = Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]
Ladder = Annotated[list[Level], Field(min_length=1)]

# Of the copy tasks, as arXiv 2609.11913 has them (second-hand): the number of different symbols
# to copy, and how many of them an episode has at most.
COPIED_SYMBOLS = 10
LONGEST_CONTENT = 9
CONTROL_TOKENS = 3  # two that start an episode, and one that asks for the copy


def suffix(level: tuple[str, str], task: Sequence[int]) -> str:
    """The end of a task's metrics where there are several: _n16_tau4."""
    return "".join(f"_{key}{value}" for key, value in zip(level, task, strict=True))


class Symbols(Section, ABC):
    """What all tasks have. level: the two keys of a task's difficulty. content: other keys, beside
    the sizes, that decide what the sequences are.
    """

    kind: Literal["symbols"]
    ladder: Ladder | None
    test_ladder: Ladder | None
    sequence_length: PositiveInt
    train_size: PositiveInt
    eval_size: PositiveInt
    level: ClassVar[tuple[str, str]]
    content: ClassVar[tuple[str, ...]] = ("name", "vocab_size")

    @property
    def tasks(self) -> list[list[int]]:
        """The values of `level` of each task in the stream that is trained on."""
        return self.ladder or [[getattr(self, key) for key in self.level]]

    def tasks_of(self, split: str) -> list[list[int]]:
        """Those of a split: the test split may have other levels than were trained on."""
        return (self.test_ladder if split == "test" else None) or self.tasks

    @abstractmethod
    def answers(self, task: list[int]) -> int:
        """How many answers are equally likely for a predictor that does not use the history."""

    def contradictions(self) -> Iterator[str]:
        if not self.ladder:
            yield from (f"data.{problem}" for problem in self._of_level(self.tasks[0]))
        for name, ladder in (("ladder", self.ladder), ("test_ladder", self.test_ladder)):
            if ladder:
                yield from (f"data.{name}={ladder}: {said}" for said in self._of_ladder(ladder))

    def _of_ladder(self, ladder: list[list[int]]) -> Iterator[str]:
        for task in ladder:
            for problem in self._of_level(task):
                yield f"[{', '.join(self.level)}]={task}: {problem}"
        if any(ladder.count(task) > 1 for task in ladder):
            yield "a level is named twice"
        if len(ladder) > self.eval_size:
            yield f"needs data.eval_size={self.eval_size} to be at least {len(ladder)}"

    def _of_level(self, task: list[int]) -> Iterator[str]:
        for key, problem in self.problems(*task):
            yield f"{key}={task[self.level.index(key)]}: {problem}"

    @abstractmethod
    def problems(self, first: int, second: int) -> Iterator[tuple[str, str]]:
        """For a level that is not allowed its key, and what the value must be."""


class NT(Symbols):
    """NT(N, tau)."""

    name: Literal["nt"]
    n: Annotated[int, Field(ge=2, le=MAX_SIZE)]
    tau: PositiveInt
    level: ClassVar[tuple[str, str]] = ("n", "tau")
    content: ClassVar[tuple[str, ...]] = ()

    @property
    def vocab_size(self) -> int:
        """Number of symbols, plus one token for each task."""
        return max(n for n, _ in self.tasks) + len(self.tasks)

    def answers(self, task: list[int]) -> int:
        """N."""
        return task[0]

    def problems(self, n: int, tau: int) -> Iterator[tuple[str, str]]:
        """See `Symbols`."""
        if n < 2:
            yield "n", "must be at least 2"
        if tau >= self.sequence_length:
            yield (
                "tau",
                f"must be less than data.sequence_length={self.sequence_length}, or nothing is "
                "predicted",
            )

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if untrained := [task for task in self.tasks_of("test") if task not in self.tasks]:
            yield (
                f"data.test_ladder={self.test_ladder}: the level {untrained[0]} must be in "
                "data.ladder too, for in nt each level has a token of its own"
            )


class Copy(Symbols):
    """Delay copy, selective copy, and episodes of both at random."""

    name: Literal["delay_copy", "selective_copy", "random_copy"]
    shortest: PositiveInt
    longest: PositiveInt
    unscored: Count
    vocab_size: Annotated[int, Field(gt=COPIED_SYMBOLS + CONTROL_TOKENS, le=MAX_SIZE)]
    level: ClassVar[tuple[str, str]] = ("shortest", "longest")
    content: ClassVar[tuple[str, ...]] = ("name", "vocab_size", "unscored")

    def answers(self, task: list[int]) -> int:
        """The symbols to copy."""
        return COPIED_SYMBOLS

    def problems(self, shortest: int, longest: int) -> Iterator[tuple[str, str]]:
        """See `Symbols`. A sequence holds at least one scored copy: behind the unscored positions
        an episode ends after `longest` + 10 tokens at the latest, and then comes a whole delay.
        """
        if shortest <= LONGEST_CONTENT:
            yield "shortest", f"must be more than the longest content, {LONGEST_CONTENT}"
        if shortest > longest:
            yield "shortest", f"must be at most the longest delay, {longest}"
        needed = self.unscored + 2 * longest + LONGEST_CONTENT + 2
        if needed > self.sequence_length:
            yield (
                "longest",
                f"needs data.sequence_length={self.sequence_length} to be at least {needed}, or "
                "nothing may be predicted",
            )


class Recall(Symbols):
    """Multi-query associative recall."""

    name: Literal["mqar"]
    pairs: PositiveInt
    length: PositiveInt
    power: Annotated[float, Field(gt=0, le=10)]
    vocab_size: Annotated[int, Field(ge=4, le=MAX_SIZE)]
    level: ClassVar[tuple[str, str]] = ("pairs", "length")
    content: ClassVar[tuple[str, ...]] = ("name", "vocab_size", "power")

    def answers(self, task: list[int]) -> int:
        """The values that the sequence has shown."""
        return task[0]

    def problems(self, pairs: int, length: int) -> Iterator[tuple[str, str]]:
        """See `Symbols`."""
        if pairs > self.vocab_size // 2:
            yield "pairs", f"must be at most half of data.vocab_size={self.vocab_size}"
        if length < 4 * pairs:
            yield "length", f"must be at least 4 * pairs = {4 * pairs}: the pairs and the queries"
        if length > self.sequence_length:
            yield "length", f"must be at most data.sequence_length={self.sequence_length}"


Task = Annotated[NT | Copy | Recall, Field(discriminator="name")]
# What the levels of each task are called.
LEVELS = {
    name: section.level
    for section in (NT, Copy, Recall)
    for name in section.model_fields["name"].annotation.__args__
}
