"""The tasks made of symbols (docs/tasks.md): a function each, for one sequence.

    nt       x_t = (x_{t-1} + x_{t-tau}) mod N; our definition, after arXiv 2407.18601
    copy     delay copy, selective copy, both at random; after arXiv 2609.11913 (second-hand)
    recall   multi-query associative recall, arXiv 2312.04927

Each takes the generator, the options and the level, and gives
inputs (L,) and targets (L,): what to predict at each position, or UNSCORED where the symbols up to
there do not determine it. So an accuracy of 1 can be reached in every task.
"""

import numpy as np

from attnlab.config.symbols import (
    CONTROL_TOKENS,
    COPIED_SYMBOLS,
    LONGEST_CONTENT,
    NT,
    Copy,
    Recall,
)

UNSCORED = -100  # a target that neither loss nor accuracy counts; torch's own default

Sequence = tuple[np.ndarray, np.ndarray]


def nt(random: np.random.Generator, options: NT, level: list[int]) -> Sequence:
    """A token that names the task, tau random symbols, and then what follows from them, which
    alone is predicted. The symbols of all tasks are 0 to N - 1; then come the tokens.
    """
    (n, tau), length = level, options.sequence_length
    x = random.integers(n, size=tau).tolist()
    for t in range(tau, length):
        x.append((x[t - 1] + x[t - tau]) % n)
    first = options.vocab_size - len(options.tasks) + options.tasks.index(level)
    return np.array([first, *x[:-1]]), np.array([UNSCORED] * tau + x[tau:])


# The vocabulary of the copy tasks: symbols 0 to 9, these, and noise.
COPY_ALL, COPY_EVEN, RECALL = range(COPIED_SYMBOLS, COPIED_SYMBOLS + CONTROL_TOKENS)
STARTS = {
    "delay_copy": [COPY_ALL],
    "selective_copy": [COPY_EVEN],
    "random_copy": [COPY_ALL, COPY_EVEN],
}
MEAN_SHARE = 2 / 3  # of the longest content: 6 symbols in the mean
LEAST_CONTENT = 2  # so that a selective copy is never empty


def copy(random: np.random.Generator, options: Copy, level: list[int]) -> Sequence:
    """Episodes, one behind the other. An episode of delay d is a start token at place 0, its
    content at the places from 1 on, noise, a recall token at place d, and the copy: of the whole
    content behind COPY_ALL, of its 2nd, 4th, ... symbol behind COPY_EVEN. The copy is scored, from
    position `unscored` on.
    """
    x: list[int] = []
    scored: list[bool] = []
    while len(x) <= options.sequence_length:
        start = random.choice(STARTS[options.name])
        size = max(LEAST_CONTENT, random.binomial(LONGEST_CONTENT, MEAN_SHARE))
        delay = random.integers(level[0], level[1], endpoint=True)
        content = random.integers(COPIED_SYMBOLS, size=size).tolist()
        noise = random.integers(RECALL + 1, options.vocab_size, size=delay - 1 - size)
        copied = content if start == COPY_ALL else content[1::2]
        x += [start, *content, *noise, RECALL, *copied]
        scored += [False] * (delay + 1) + [True] * len(copied)
    tokens, determined = (np.array(part[: options.sequence_length + 1]) for part in (x, scored))
    targets = np.where(determined[1:], tokens[1:], UNSCORED)
    targets[: options.unscored] = UNSCORED
    return tokens[:-1], targets


def recall(random: np.random.Generator, options: Recall, level: list[int]) -> Sequence:
    """Different keys, each with its value behind it, and later every key once more, where its
    value is to be predicted. Keys are of the lower half of the vocabulary, values of the upper
    one, all different. Queries stand at even places within `length`; the s-th of these places from
    the pairs on is drawn in proportion to s^(power - 1), so that small powers ask early. All other
    tokens are random.
    """
    pairs, length = level
    half = options.vocab_size // 2
    keys = random.choice(half, size=pairs, replace=False)
    values = half + random.choice(options.vocab_size - half, size=pairs, replace=False)
    inputs = random.integers(options.vocab_size, size=options.sequence_length)
    inputs[: 2 * pairs] = np.stack((keys, values), axis=1).flatten()
    places = np.arange(1, (length - 2 * pairs) // 2 + 1)
    share = places ** (options.power - 1.0)
    chosen = random.choice(places, size=pairs, replace=False, p=share / share.sum())
    queries = 2 * (pairs + chosen - 1)
    targets = np.full(options.sequence_length, UNSCORED)
    inputs[queries], targets[queries] = keys, values
    return inputs, targets


TASKS = {"nt": nt, "mqar": recall, **dict.fromkeys(STARTS, copy)}
