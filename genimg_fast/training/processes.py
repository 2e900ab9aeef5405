"""Training in several processes, started by ``torchrun``: who does what, and what they tell each other."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Number of this process: 0 for the one that writes files and talks to the user."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes, if ``torchrun`` has started any; leave them at the end.

    Args:
        device: Where to train. ``cuda`` becomes the GPU with this process's local number.

    Yields:
        The device of this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
        wait_for_all()  # whoever leaves first would take the connections of those that still talk
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Wait until every process has come here; then each may leave."""
    if world_size() > 1:
        # Gloo's threads drop the tensors of the last messages a moment after these are through; a barrier holds on
        # to those still there. They need Python for that: when it is gone, they abort.
        time.sleep(0.1)
        dist.barrier()


def sum_over_processes(values: Tensor) -> Tensor:
    """Add up a tensor that every process has, of one shape; in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def mean_over_processes(values: Tensor) -> Tensor:
    """Average a tensor that every process has, of one shape; in place."""
    return sum_over_processes(values).div_(world_size()) if world_size() > 1 else values


def gather_rows(values: Tensor) -> Tensor:
    """Put the rows of all processes, as many each, into the order in which a batch was dealt out to them."""
    if world_size() == 1:
        return values
    gathered = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(gathered, values.contiguous())
    return torch.stack(gathered, 1).flatten(0, 1)


def highest_of_processes(value: int, device: torch.device) -> int:
    """Tell every process the highest of the numbers, below 2**24, that they pass."""
    if world_size() == 1:
        return value
    highest = torch.tensor(float(value), device=device)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return int(highest)


@contextmanager
def raised_in_all() -> Iterator[None]:
    """Let every process raise an error of the system, such as a full disk, that the first one meets in here."""
    error: OSError | None = None
    try:
        yield
    except OSError as failure:
        error = failure
    error = gather_objects(error)[0]
    if error is not None:
        raise error


def gather_objects(value: Any) -> list[Any]:
    """Get what every process passes, in the order of their numbers."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered
