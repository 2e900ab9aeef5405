"""Batches that are read ahead, by a thread or by processes, and shared by processes."""

import fcntl
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

import genimg_fast as gf
from genimg_fast.data.stream import draw_order, fetch_batches, map_in_order


def numbered(n: int = 10) -> gf.data.ImageDataset:
    return gf.data.ImageDataset(torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).repeat(1, 1, 4, 4))


def numbers(images: Tensor) -> list[int]:
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_parts_make_up_the_batches() -> None:
    whole = gf.data.batches(numbered(), 5, seed=3)
    parts = [gf.data.batches(numbered(), 5, seed=3, part=part, parts=2) for part in range(2)]
    for batch in islice(whole, 4):
        first, second = (numbers(next(part)[0]) for part in parts)
        assert (len(first), len(second)) == (3, 2)
        assert numbers(batch[0]) == [first[0], second[0], first[1], second[1], first[2]]


def test_augmentation_is_the_same_for_any_number_of_processes() -> None:
    data = gf.data.Augmented(numbered(40), flip=True, shift=1)
    torch.manual_seed(1)
    whole, _ = next(gf.data.batches(data, 20))
    for part in range(2):
        torch.manual_seed(1)
        images, _ = next(gf.data.batches(data, 20, part=part, parts=2))
        assert torch.equal(images, whole[part::2])


def test_a_transform_of_torchvision_changes_each_image_by_itself() -> None:
    colour = gf.data.ImageDataset(torch.full((16, 3, 4, 4), 100, dtype=torch.uint8))
    data = gf.data.Augmented(colour, transform=v2.ColorJitter(brightness=0.5))
    images, _ = next(gf.data.batches(data, 16))
    assert images.shape == (16, 3, 4, 4)
    assert len(images.mean((1, 2, 3)).unique()) > 8
    assert images.min() >= -1
    again, _ = data[torch.arange(16)]
    assert not torch.equal(again, images)


def fetch(number: int, index: Tensor) -> tuple[Tensor, Tensor]:
    if number == 3:
        raise ValueError("batch 3 is broken")
    return index.view(-1, 1).to(torch.uint8), index


CPU = torch.device("cpu")


def running() -> int:
    return threading.active_count() + len(multiprocessing.active_children())


def ends_up_with(before: int) -> bool:
    """Wait for the threads of queues, which end a moment after the queues are closed."""
    deadline = time.monotonic() + 10
    while running() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    return running() <= before


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("thread", [False, True])
def test_an_error_comes_in_its_turn_and_leaves_nothing_running(workers: int, thread: bool) -> None:
    before = running()
    batches = fetch_batches(fetch, draw_order(10, 4), device=CPU, workers=workers, thread=thread)
    assert [labels.tolist() for _, labels in islice(batches, 3)] == [
        index.tolist() for _, index in islice(draw_order(10, 4), 3)
    ]
    with pytest.raises(ValueError, match=r"^batch 3 is broken$") as raised:
        next(batches)
    assert raised.tb is not None  # which holds on to everything
    assert multiprocessing.active_children() == []
    assert ends_up_with(before)


@pytest.mark.parametrize("workers", [0, 2])
def test_closing_ends_threads_and_processes(workers: int) -> None:
    before = running()
    batches = fetch_batches(fetch, draw_order(10, 4), device=CPU, workers=workers, thread=True)
    next(batches)
    assert running() > before
    batches.close()
    assert multiprocessing.active_children() == []
    assert ends_up_with(before)


def test_batches_that_come_to_an_end() -> None:
    order = [(number, torch.tensor([number])) for number in range(3)]
    for workers in (0, 2):
        batches = fetch_batches(fetch, iter(order), device=CPU, workers=workers, thread=True)
        assert [int(labels) for _, labels in batches] == [0, 1, 2]


def half(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order_with_errors_among_them(workers: int) -> None:
    results = list(map_in_order(half, range(40), workers=workers, title="halves"))
    assert results[::2] == list(range(20))
    assert [str(error) for error in results[1::2]] == [f"{number} is odd" for number in range(1, 40, 2)]


class Finalized:
    """Garbage in a circle that says where it was collected."""

    def __init__(self, told: Path) -> None:
        self.itself, self.told = self, told

    def __del__(self) -> None:
        with self.told.open("a") as file:
            print(os.getpid(), file=file)


class Collecting(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        gc.collect()
        return torch.full((1, 4, 4), index, dtype=torch.float32)


def collect_and_fetch(number: int, index: Tensor) -> tuple[Tensor, Tensor]:
    gc.collect()
    return index.view(-1, 1).to(torch.uint8), index


def test_workers_do_not_collect_what_is_garbage_in_the_process_that_starts_them(tmp_path: Path) -> None:
    """A finalizer may need a thread that only this process has."""
    loader = torch.utils.data.DataLoader(Collecting(), batch_size=4, num_workers=1)
    gc.disable()  # the garbage is to be there still when the workers start
    try:
        Finalized(tmp_path / "told")
        batches = fetch_batches(collect_and_fetch, draw_order(10, 4), device=CPU, workers=1)
        assert next(batches)[0].shape == (4, 1)
        assert next(gf.data.batches(gf.data.as_batched(loader), 4))[0].shape == (4, 1, 4, 4)
    finally:
        gc.enable()
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert (tmp_path / "told").read_text() == f"{os.getpid()}\n"


LEFT_OPEN = """
    import torch
    from genimg_fast.data.stream import draw_order, fetch_batches
    def fetch(number, index):
        return index.view(-1, 1).to(torch.uint8), index
    batches = fetch_batches(fetch, draw_order(10, 4), device=torch.device("cpu"), workers=1)
    print(next(batches)[0].shape)
"""


def test_a_program_ends_with_batches_left() -> None:
    """The workers hear no signal: they must be told."""
    subprocess.run([sys.executable, "-c", textwrap.dedent(LEFT_OPEN)], check=True, timeout=60, capture_output=True)


KILLED = """
    import fcntl, sys, time
    from genimg_fast.data.stream import map_in_order
    lock = open(sys.argv[1], "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    for item in map_in_order(lambda number: bytes(1 << 20), range(10**6), workers=2, title=""):
        print(flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_a_parent_that_is_killed(signum: int, tmp_path: Path) -> None:
    """Also those that wait for room in a pipe; what they have inherited, such as locks, is free then."""
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent, open(tmp_path / "lock", "w") as lock:
        assert parent.stdout is not None
        parent.stdout.readline()
        os.kill(parent.pid, signum)
        parent.wait()
        for _ in range(200):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.01)
        pytest.fail("workers hold the lock after two seconds")


def endless() -> Iterator[Tensor]:
    number = 0
    while True:
        yield torch.full((1, 2, 2), float(number % 2))
        number += 1


def test_look_and_batches_agree_on_where_a_stream_begins() -> None:
    data = gf.data.as_batched(endless())
    assert data.look()[0].shape == (64, 1, 2, 2)
    images, _ = next(gf.data.batches(data, 100))
    assert images[:, 0, 0, 0].tolist() == [0.0, 1.0] * 50


class Stream:
    """Stands for a stream of a GPU."""

    def __init__(self, name: str, log: list[Any]) -> None:
        self.name, self.log = name, log

    def record_event(self) -> int:
        self.log.append(("event", self.name))
        return sum(entry[0] == "event" for entry in self.log)

    def wait_event(self, event: int) -> None:
        self.log.append(("wait", self.name, event))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_go_to_a_gpu_ahead_from_pinned_memory_on_a_stream_of_their_own(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins for what needs a GPU: the threads, the order and the waiting are a training's."""
    log: list[Any] = []
    gpu: Any = SimpleNamespace(type="cuda")
    on = threading.local()

    @contextmanager
    def stream(side: Stream) -> Iterator[None]:
        on.name = side.name
        yield
        del on.name

    def to(tensor: Tensor, device: Any, **options: Any) -> Tensor:
        if device is gpu and hasattr(on, "name"):
            log.append(("copy", on.name, options))
        return tensor

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side", log))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("training", log))
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: log.append(("pin",)) or tensor)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, used: log.append(("used on", used.name)))
    monkeypatch.setattr(Tensor, "to", to)

    order = ((number, torch.tensor([number])) for number in range(8))
    stream_of_batches = fetch_batches(
        lambda number, index: (index, index), order, device=gpu, workers=workers, thread=True
    )
    first, _ = next(stream_of_batches)
    deadline = time.monotonic() + 30
    while sum(entry[0] == "event" for entry in log) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)  # the next ones are on their way while the first is trained on
    copied = [entry for entry in log if entry[0] not in ("wait", "used on")]
    assert copied[:5] == [("pin",), ("copy", "side", {"non_blocking": True})] * 2 + [("event", "side")]
    assert sum(entry[0] == "event" for entry in log) >= 3
    assert [int(first)] + [int(images) for images, _ in stream_of_batches] == list(range(8))
    handed = [entry for entry in log if entry[0] in ("wait", "used on")]
    assert handed == [
        entry
        for number in range(8)
        for entry in (("wait", "training", number + 1), *2 * [("used on", "training")])
    ]
