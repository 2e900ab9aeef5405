"""Two processes that take turns; here threads stand for them."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from genimg_fast.bench.turns import Turns


def both(first: Callable[[Turns], object], second: Callable[[Turns], object]) -> list[object]:
    """Run two ends of a talk, each of which hangs up at its end."""
    (reads, theirs), (their_reads, writes) = os.pipe(), os.pipe()
    ends = [Turns(reads, writes, 0, seed=3), Turns(their_reads, theirs, 1, seed=3)]

    def run(end: Turns, work: Callable[[Turns], object]) -> object:
        try:
            return work(end)
        finally:
            end.hang_up()

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, ends, (first, second)))


def test_rounds_are_pairs_in_an_order_that_is_drawn_and_never_at_the_same_time() -> None:
    log: list[str] = []

    def measure(name: str, most: int) -> Callable[[Turns], int]:
        def work(turns: Turns) -> int:
            assert turns.meet([0, 0])
            done = 0
            while True:
                done += 1
                if turns.pair(lambda: log.extend([name, name.upper()]), done == most):
                    return done

        return work

    assert both(measure("a", 20), measure("b", 50)) == [20, 20]  # the one that needs fewer decides
    begun, ended = log[::2], log[1::2]
    assert [name.upper() for name in begun] == ended
    orders = {"".join(begun[i : i + 2]) for i in range(0, 40, 2)}
    assert orders == {"ab", "ba"}


def test_what_one_leaves_out_the_other_measures_alone() -> None:
    def places(*numbers: int) -> Callable[[Turns], list[bool]]:
        return lambda turns: [turns.meet([number, 1]) for number in numbers]

    assert both(places(0, 1, 2, 5), places(1, 3, 5, 6)) == [[False, True, False, True], [True, False, True, False]]


@pytest.mark.parametrize("after", [0, 1])
def test_the_other_goes_on_when_one_has_gone(after: int) -> None:
    def stays(turns: Turns) -> int:
        assert turns.meet([0])
        return sum(turns.pair(lambda: None, enough=done == 5) for done in range(6))

    def goes(turns: Turns) -> None:
        turns.meet([0])
        for _ in range(after):
            turns.pair(lambda: None, enough=False)

    assert both(stays, goes)[0] == 1
