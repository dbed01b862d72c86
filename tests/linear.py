"""Shows that a pattern, or a function of a text, takes time linear in the length of the text."""

import itertools
import re
import time

CHARACTERS = " \t\n.,-'`>aA0"
SINGLE_AND_PAIRS = [*CHARACTERS, *map("".join, itertools.permutations(CHARACTERS, 2))]
LENGTHS = (500, 2000, 8000)
NOISE_S = 0.001  # what the clock or a garbage collection may add
TRIES = 4


def patterns_of(module):
    """(name, pattern) of every compiled pattern that stands in a module."""
    found = []
    for name, value in vars(module).items():
        members = value if isinstance(value, tuple | list) else [value]
        found += [(name, member) for member in members if isinstance(member, re.Pattern)]
    return found


def name_of(value):
    """The id of a test: the name of a pattern, without the pattern."""
    return value if isinstance(value, str) else "linear"


def words_of(pattern):
    """Pieces made of the words in a pattern, because a match may begin at each of them."""
    words = sorted(set(re.findall(r"(?<!\\)[A-Za-z]{2,}", pattern.pattern)))
    return [word + end for word in words for end in ("", " ")]


def cpu_seconds(function, text):
    start = time.thread_time()
    function(text)
    return time.thread_time() - start


def is_slow(function, piece):
    """Whether 4 times the length takes more than 8 times as long, in every try.

    A linear function takes 4 times as long, a quadratic one 16 times. The lengths grow step by
    step, so that a cubic function is found out while it still ends.
    """
    for i in range(TRIES):
        tail = chr(0x100 + i)  # no text is given twice, so no cache helps
        last = None
        for length in LENGTHS:
            taken = cpu_seconds(function, piece * (length // len(piece)) + tail)
            if last is not None and taken > 8 * last + NOISE_S:
                break
            last = taken
        else:
            return False
    return True


def slow_pieces(pattern, anchored=False):
    """The pieces whose repetition makes a search with `pattern` take more than linear time.

    An anchored pattern is tried at the start of the text alone.
    """

    def search(text):
        if anchored:
            pattern.match(text)
        else:
            for _ in pattern.finditer(text):
                pass

    return [piece for piece in [*SINGLE_AND_PAIRS, *words_of(pattern)] if is_slow(search, piece)]
