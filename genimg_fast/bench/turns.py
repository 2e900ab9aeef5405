"""Two processes that take turns, round by round, so that what slows the machine slows both.

Each has another version of the package loaded. Before each measurement they meet; a round of the one and a round
of the other, in an order drawn anew, make a pair. Where one has nothing to measure, or has gone, the other goes on
alone.
"""

import json
import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

PAUSE = 0.005  # seconds for which threads of an OpenMP pool may look for work before they sleep


class Turns:
    """One end of the talk between the two.

    Args:
        reads: File descriptor that the other's words come from.
        writes: File descriptor for words to the other.
        index: 0 in the one process, 1 in the other.
        seed: Of the orders, the same in both.
    """

    def __init__(self, reads: int, writes: int, index: int, seed: int) -> None:
        self._reads, self._writes = os.fdopen(reads, "rb"), os.fdopen(writes, "wb", 0)
        self._index, self._generator = index, np.random.default_rng(seed)
        self._place: list[int] | None = None  # that the other has announced, and not been met at
        self._gone = False

    def hang_up(self) -> None:
        """Let the other know that it is alone from now on."""
        self._gone = True
        self._writes.close()
        self._reads.close()

    def _tell(self, word: object) -> None:
        if self._gone:
            return
        try:
            self._writes.write(json.dumps(word).encode() + b"\n")
        except BrokenPipeError:
            self._gone = True

    def _hear(self) -> object:
        line = b"" if self._gone else self._reads.readline()
        self._gone = not line
        return json.loads(line) if line else None

    def meet(self, place: Sequence[int]) -> bool:
        """Wait until the other is at the same place, or beyond.

        Args:
            place: Number of the case, the pass and the state; both go through them in the same order.

        Returns:
            Whether it is at this place.
        """
        own = list(place)
        self._tell(own)
        while self._place is None or self._place < own:
            heard = self._hear()
            if not isinstance(heard, list):
                return False
            self._place = heard
        if self._place > own:
            return False
        self._place = None
        return True

    def pair(self, work: Callable[[], None], enough: bool) -> bool:
        """Do a round of this process and let the other do one, in an order that both draw alike.

        Args:
            work: The round.
            enough: Whether this process needs no more after it.

        Returns:
            Whether that is enough for both: the one that needs fewer rounds decides.
        """
        first = self._generator.integers(2) == self._index
        theirs = None if first else self._hear()
        work()
        time.sleep(PAUSE if torch.get_num_threads() > 1 else 0)
        self._tell(enough)
        theirs = self._hear() if first else theirs
        return enough or theirs is True
