"""How batches come to the training: the order of the images, reading ahead, the way to the device."""

import atexit
import gc
import multiprocessing
import os
import signal
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from genimg_fast.data.optional import optional_import

Batch = tuple[Tensor, Tensor]
# Batches that are ready, or on their way, beside the one that is trained on.
_AHEAD = 2
# Items that a worker handles at a time where there is an item in a call.
_CHUNK = 16
_RUNNING: "weakref.WeakSet[Any]" = weakref.WeakSet()


def to_floats(images: Tensor) -> Tensor:
    """Turn bytes into float32 in [-1, 1], and floating-point numbers, whatever their precision, into float32."""
    return images.float().div_(127.5).sub_(1) if images.dtype == torch.uint8 else images.float()


def draw_order(
    n: int, batch_size: int, *, seed: int = 0, start: int = 0, part: int = 0, parts: int = 1
) -> Iterator[tuple[int, Tensor]]:
    """Draw which things make which batch, epoch after epoch, without end; see :func:`genimg_fast.data.batches`.

    Args:
        n: Number of things.
        batch_size: Things in a batch.
        seed: Decides the order.
        start: Number of the first batch.
        part: What this process gets of each batch: thing number ``part``, and every ``parts``-th one behind it.
        parts: Number of processes that share a batch.

    Yields:
        Number of the batch, and indices, int64 on the CPU.

    Raises:
        ValueError: If a batch is larger than ``n``.
    """
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size must lie in 1..{n}, the number of images, got {batch_size}")
    return _order(n, batch_size, torch.Generator().manual_seed(seed), start, part, parts)


def _order(
    n: int, batch_size: int, generator: torch.Generator, start: int, part: int, parts: int
) -> Iterator[tuple[int, Tensor]]:
    per_epoch = n // batch_size
    for _ in range(start // per_epoch):
        torch.randperm(n, generator=generator)
    number = start
    while True:
        order = torch.randperm(n, generator=generator)
        for batch in range(number % per_epoch, per_epoch):
            yield number, order[batch * batch_size + part : (batch + 1) * batch_size : parts]
            number += 1


def announced(
    order: Iterator[tuple[int, Tensor]], announce: Callable[[Tensor], None]
) -> Iterator[tuple[int, Tensor]]:
    """Tell which indices are to come, some batches before it is their turn."""
    coming: deque[tuple[int, Tensor]] = deque()
    for task in order:
        announce(task[1])
        coming.append(task)
        if len(coming) > _AHEAD:
            yield coming.popleft()
    yield from coming


def fetch_batches(
    fetch: Callable[[int, Tensor], Batch],
    order: Iterator[tuple[int, Tensor]],
    *,
    device: torch.device,
    workers: int = 0,
    thread: bool = False,
) -> Iterator[Batch]:
    """Fetch batches ahead of the training, and bring them to its device.

    What comes out depends on ``order`` alone, and not on how it is fetched.

    Args:
        fetch: Makes a batch, on the CPU, of its number and its indices.
        order: These.
        device: Where the batches go: to a GPU through pinned memory, on a stream of their own.
        workers: Processes that fetch; 0 for none but this.
        thread: Whether, without workers, a thread may call ``fetch``: not if it draws global random numbers.

    Yields:
        Images, bytes turned into float32 in [-1, 1], and labels.

    Raises:
        ValueError: Whatever ``fetch`` raises, in a worker or not; an OSError likewise.
    """
    with ExitStack() as at_end:
        if workers > 0:
            tasks = ((number, index.numpy()) for number, index in order)  # tensors would take shared memory each
            batches: Iterator[Any] = map(
                _raised, at_end.enter_context(closing(_in_workers(_Fetch(fetch), tasks, workers)))
            )
        else:
            batches = (fetch(number, index) for number, index in order)
        if device.type == "cuda" and (workers > 0 or thread):
            sent = at_end.enter_context(closing(_taken_ahead(_sent(batches, device))))
            batches = _received(sent, device)
        elif thread and workers == 0:
            batches = at_end.enter_context(closing(_taken_ahead(batches)))
        for images, labels in batches:
            yield to_floats(images.to(device, non_blocking=True)), labels.to(device, non_blocking=True)


def map_in_order(
    function: Callable[[int], Any], numbers: Sequence[int], *, workers: int, title: str
) -> Iterator[Any]:
    """Call a function with each number, in worker processes, and show how far it is where stderr is a terminal.

    Args:
        function: What to call; it returns what pickles well.
        numbers: Its arguments.
        workers: Number of processes; 0 for this one.
        title: What the bar says.

    Yields:
        The results, in the order of the numbers; a ValueError or OSError is a result, too.
    """
    chunks = (numbers[first : first + _CHUNK] for first in range(0, len(numbers), _CHUNK))
    call = _Call(function)
    with ExitStack() as at_end:
        results: Iterator[Any] = map(call.__getitem__, chunks)
        if workers > 0:
            results = at_end.enter_context(closing(_in_workers(call, chunks, workers)))
        bar: Any = None
        if sys.stderr.isatty():
            tqdm = optional_import("tqdm").tqdm
            bar = at_end.enter_context(tqdm(total=len(numbers), desc=title, unit="image", mininterval=0.2))
        for chunk in results:
            yield from chunk
            if bar is not None:
                bar.update(len(chunk))


class _Fetch:
    """A data set for a DataLoader, indexed with a batch's number and indices. Errors of the data are returned."""

    def __init__(self, fetch: Callable[[int, Tensor], Batch]) -> None:
        self.fetch = fetch

    def __getitem__(self, task: tuple[int, Any]) -> Batch | Exception:
        try:
            return self.fetch(task[0], torch.from_numpy(task[1]))
        except (ValueError, OSError) as error:  # raised from a worker, it would come with two tracebacks
            return error


class _Call:
    """A data set for a DataLoader, indexed with a few numbers at a time."""

    def __init__(self, function: Callable[[int], Any]) -> None:
        self.function = function

    def __getitem__(self, numbers: Sequence[int]) -> list[Any]:
        results: list[Any] = []
        for number in numbers:
            try:
                results.append(self.function(number))
            except (ValueError, OSError) as error:
                results.append(error)
        return results


def _in_workers(dataset: Any, tasks: Iterable[Any], workers: int) -> Generator[Any, None, None]:
    """Index a data set with tasks, in order, in worker processes that read ahead."""
    loader: DataLoader[Any] = DataLoader(
        dataset, sampler=tasks, batch_size=None, num_workers=workers, prefetch_factor=_AHEAD, collate_fn=_as_is,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # else a number would be drawn from the global one
    )  # fmt: skip
    with garbage_left_to_this_process():
        batches: Any = iter(loader)
    _RUNNING.add(batches)
    try:
        yield from batches
    finally:
        batches.__del__()  # a traceback may hold on to it for long


@contextmanager
def garbage_left_to_this_process() -> Iterator[None]:
    """Start processes that never collect what is garbage here when they start.

    A forked process has a copy of it, and not of the threads that a finalizer may wait for: those of PyAV's frames
    would wait for ever.
    """
    frozen_before = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if frozen_before == 0:  # else the caller's frozen objects would thaw, too
            gc.unfreeze()


@atexit.register
def _end_workers() -> None:
    """End what is still running: Python would send its processes SIGTERM, and wait for them for ever."""
    for batches in list(_RUNNING):
        batches.__del__()


def _as_is(batch: Any) -> Any:
    return batch


def _begin_worker(worker: int) -> None:
    # A worker that outlives a killed parent would wait for ever, and hold its locks: they are inherited.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The terminal sends Ctrl-C, and some schedulers SIGTERM, to every process. The training decides when to stop.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    warnings.simplefilter("once")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _raised(result: Any) -> Any:
    if isinstance(result, Exception):
        raise result
    return result


def _taken_ahead(items: Iterator[Any]) -> Generator[Any, None, None]:
    """Take items in a thread, some before they are asked for."""
    with ThreadPoolExecutor(1, "genimg_fast data") as pool:
        pending = deque(pool.submit(next, items, None) for _ in range(_AHEAD))
        try:
            while (item := pending.popleft().result()) is not None:
                pending.append(pool.submit(next, items, None))
                yield item
        finally:
            for future in pending:
                future.cancel()


def _sent(batches: Iterator[Batch], device: torch.device) -> Iterator[tuple[Batch, torch.cuda.Event]]:
    """Copy batches to a GPU on a stream of their own, from pinned memory."""
    side = torch.cuda.Stream(device)
    for images, labels in batches:
        with torch.cuda.stream(side):
            sent = tuple(tensor.pin_memory().to(device, non_blocking=True) for tensor in (images, labels))
        yield (sent[0], sent[1]), side.record_event()


def _received(batches: Iterator[tuple[Batch, torch.cuda.Event]], device: torch.device) -> Iterator[Batch]:
    """Let the current stream wait for batches that were sent on another one."""
    for batch, event in batches:
        current = torch.cuda.current_stream(device)
        current.wait_event(event)
        for tensor in batch:
            tensor.record_stream(current)
        yield batch
