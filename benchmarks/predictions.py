"""Predicted times of the streaming operators on an H200: arithmetic on counts, not measurements.

A kernel's time is that of starting it, of the waits that nothing overlaps, and of its traffic or its instructions,
whichever takes longer:

    time = start + phases * latency + (memory**4 + issue**4) ** (1 / 4)
    memory = max(bytes beyond the L2 / copy rate, all bytes / L2 rate, bytes read * latency / bytes in flight)
    issue = elements * instructions per element / (lane-instructions a second * share that the warps can reach)

The fourth powers say that the two overlap but for a little where they are alike. Instructions, warps and bytes in
flight are what `.ci/check-cuda` counts in the machine code, or the limits it holds the kernels to. No GPU has
confirmed any of this; expect a quarter more or less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import ceil

MULTIPROCESSORS = 132
LANE_INSTRUCTIONS = MULTIPROCESSORS * 128 * 1.9e9  # a second, if every scheduler issued in every clock
ISSUE_SHARES = {0: 0.0, 8: 0.38, 16: 0.6, 24: 0.7, 32: 0.78}  # of those, by warps a multiprocessor
COPY_RATE = 4.3e12  # bytes a second, read and written
READ_RATE = 4.4e12
L2_RATE = 5.5e12
L2_KEPT = 40e6  # bytes read last that the L2 (60 MB) still has when the next pass begins with them
LATENCY = 0.85e-6  # of a load under load
START = 1.2e-6  # of a further kernel in a stream
EARLY_START = 0.5e-6  # of one that starts while the last blocks of the one before still run (sm_90)
MEMSET = 1.5e-6
CLUSTER_MEETING = 0.4e-6  # of blocks of a cluster

BLOCK_BYTES = 323 << 10  # that a block alone on its multiprocessor holds, in registers and shared memory
ON_CHIP_WARPS = 16  # one block of 512 threads a multiprocessor,
ON_CHIP_IN_FLIGHT = ON_CHIP_WARPS * 32 * 64  # with four accesses on their way each

CLUSTERS = {1: 132, 2: 66, 4: 32, 8: 16, 16: 8}  # that run at a time, by blocks; a block to a multiprocessor
CLUSTER_SHARED = 209 << 10  # bytes of a block's ring
CLUSTER_SLOTS = 16  # in it, at most
CLUSTER_PORT = (
    64e9  # bytes a second of one multiprocessor, if the others leave it the memory: half of what L2 gives
)

GROUPS, PIXELS = 32, 128 * 128  # of group norm: in a sample, and where there are so many in a channel
GROUP_BLOCK_BYTES = 256 << 10  # that a block of group norm holds
# Instructions with which a warp leaves the sums of a channel to its block and begins the next: 70, and 18 more
# after the last one of a tile, here the second.
CHANNEL_END = 80
CLUSTER_CHANNELS = 32  # of a group, at most, that clusters exchange sums of

# What is asked of the normalisations: of the speed of a copy, and over a pair of kernels that reads twice.
TARGET_SHARE, TARGET_GAIN = 0.85, 1.3
TARGET_SHAPES = ((64 << 20, 64), (64 << 20, 256), (64 << 20, 1024), (64 << 20, 2048), (512 << 20, 256))
SHAPES = ((1 << 20, 64), (16 << 20, 64), (64 << 20, 64), (64 << 20, 256), (512 << 20, 256))  # bytes, channels
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Of group norm's input, beside a float32 output and gradient, as autocast has it.
WIDE_OUTPUT = "bfloat16 to float32"
ITEM_BYTES[WIDE_OUTPUT] = 2


@dataclass(frozen=True)
class Loop:
    """What counts of a kernel's main loop."""

    per_element: float  # instructions
    warps: int = 40  # resident on a multiprocessor
    in_flight: int = 80 << 10  # bytes a multiprocessor


def limits(dtype: str) -> dict[str, float]:
    """Instructions per element that the main loops are held to, by kernel."""
    normalizations = {"reduce_moments": 5, "normalize": 7, "reduce_gradients": 11, "apply_gradients": 12}
    reparameterization = 95 if dtype == "float32" else 55
    return {**normalizations, "forward": reparameterization, "backward": reparameterization}


Loops = Mapping[str, Loop]  # by kernel


def limit_loops(dtype: str) -> dict[str, Loop]:
    """The loops of kernels that just keep the limits."""
    return {name: Loop(limit, 32 if "ward" in name else 40) for name, limit in limits(dtype).items()}


def issue_share(warps: float) -> float:
    """The share of the peak issue rate that this many resident warps can reach."""
    known = sorted(ISSUE_SHARES.items())
    for (low, low_share), (high, high_share) in pairwise(known):
        if warps <= high:
            return low_share + (high_share - low_share) * (warps - low) / (high - low)
    return known[-1][1]


def stream(elements: float, loop: Loop, read: float, written: float, again: bool = False) -> float:
    """Seconds of a loop that reads and writes so many bytes; `again`, the last ones first: the L2 has some."""
    from_cache = min(read, L2_KEPT) if again else 0.0
    rate = COPY_RATE if written else READ_RATE
    memory = (read + written - from_cache) / rate
    if from_cache:
        memory = max(memory, (read + written) / L2_RATE)
    memory = max(memory, read * LATENCY / (MULTIPROCESSORS * loop.in_flight))
    issue = elements * loop.per_element / (LANE_INSTRUCTIONS * issue_share(loop.warps))
    return (memory**4 + issue**4) ** 0.25


@dataclass(frozen=True)
class Call:
    """One call of an operator on a tensor of `bytes` bytes.

    Attributes:
        bytes: Of the tensor, which is the input.
        dtype: Of its elements; or WIDE_OUTPUT.
        layout: "NCHW" or "NHWC".
        channels: Of a sample.
        group_bytes: Of group norm: of a group of a sample; 0 for GROUPS groups of pictures with PIXELS pixels.
    """

    bytes: int
    dtype: str
    layout: str
    channels: int = 64
    group_bytes: float = 0

    @property
    def elements(self) -> float:
        return self.bytes / ITEM_BYTES[self.dtype]

    def read(self, tensors: int) -> int:
        """Bytes of the input, or of the input and its output's gradient."""
        return self.bytes * (tensors + (tensors == 2 and self.dtype == WIDE_OUTPUT))

    def written(self, tensors: int) -> int:
        """Bytes of the output, or of the input's gradient."""
        return self.bytes * (1 + (tensors == 1 and self.dtype == WIDE_OUTPUT))

    def tile_bytes(self) -> float:
        """Of what has to be together to be normalised: a group of a sample, if there are groups; a channel, or 64
        bytes of channels if they lie together."""
        if self.group_bytes:
            return self.group_bytes
        together = 64 / ITEM_BYTES[self.dtype] if self.layout == "NHWC" else 1
        return self.bytes * min(1.0, together / self.channels)


def split(call: Call, reduce: Loop, write: Loop, tensors: int) -> float:
    """Reduce, then read again and write: three accesses per element forward, five backward."""
    read, written = call.read(tensors), call.written(tensors)
    reducing = START + 2 * LATENCY + stream(call.elements, reduce, read, 0)
    return reducing + EARLY_START + 2 * LATENCY + stream(call.elements, write, read, written, again=True)


def on_chip(call: Call, reduce: Loop, write: Loop, tensors: int) -> float:
    """Load `tensors` tensors, hold them, write; the reading of a block overlaps with the writing of no other."""
    loaded = stream(call.elements, reduce, call.read(tensors), 0)
    return START + 3 * LATENCY + loaded + stream(call.elements, write, 0, call.written(tensors))


@dataclass(frozen=True)
class ClusterPlan:
    """How clusters share the tiles of a call out, as csrc/cuda/cluster_launch.cuh decides it."""

    blocks: int  # of a cluster
    clusters: int
    turns: int  # tiles of the cluster that has most
    piece_bytes: int  # of all tensors
    pieces: int  # of a block's share of a tile
    slots: int  # for them

    @property
    def spare_bytes(self) -> int:
        """What a block can load while it still holds a tile."""
        return (self.slots - self.pieces) * self.piece_bytes


def cluster_plan(call: Call, tensors: int) -> ClusterPlan | None:
    """The plan with the least work for the busiest multiprocessor; None if to read twice is faster."""
    tiles = ceil(call.bytes / call.tile_bytes())
    word = 8 if call.dtype == WIDE_OUTPUT else 16  # bytes of the input
    lanes = word // ITEM_BYTES[call.dtype] if call.layout == "NHWC" else 1
    group = 64 // ITEM_BYTES[call.dtype] if lanes > 1 else 1
    plans = []
    for blocks, most in CLUSTERS.items():
        words = call.tile_bytes() / word / blocks
        threads = 128
        while threads < 512 and (words / threads * tensors > 8 or threads < group * blocks):
            threads *= 2
        piece_words = threads * (2 if tensors == 2 and word // ITEM_BYTES[call.dtype] == 8 else 4)
        piece = piece_words * word * call.read(tensors) // call.bytes
        pieces = ceil(words / piece_words)
        slots = min(CLUSTER_SHARED // piece, CLUSTER_SLOTS, 2 * pieces)
        if pieces <= slots:
            clusters = min(tiles, most)
            plan = ClusterPlan(blocks, clusters, ceil(tiles / clusters), piece, pieces, slots)
            stall = max(0, (48 << 10) - plan.spare_bytes)
            plans.append((plan.turns * (pieces * piece + (16 << 10)) + (plan.turns - 1) * stall, plan))
    if not plans:
        return None
    work, plan = min(plans, key=lambda entry: entry[0])
    return plan if work <= 1.5 * call.read(tensors) / MULTIPROCESSORS + (96 << 10) else None


def cluster(call: Call, reduce: Loop, write: Loop, load: Loop, tensors: int) -> float | None:
    """Clusters walk tiles while their next tile loads.

    Pieces are reduced as they arrive, so of a tile's reduction only that of its last piece is not hidden. From
    then until the first piece is written nothing leaves the ring: memory goes on with what is spare in it, and
    if that is less, stands still, in all clusters at the same time.
    """
    plan = cluster_plan(call, tensors)
    if plan is None:
        return None
    tile = call.tile_bytes()
    last = ceil(call.bytes / tile) - (plan.turns - 1) * plan.clusters  # tiles of the last turn

    def moving(tiles: int) -> float:
        moved = (call.read(tensors) + call.written(tensors)) / call.bytes * tile * tiles
        return moved / min(COPY_RATE, tiles * plan.blocks * CLUSTER_PORT)

    memory = (plan.turns - 1) * moving(plan.clusters) + moving(last)
    lanes = LANE_INSTRUCTIONS / MULTIPROCESSORS * issue_share(ON_CHIP_WARPS)
    elements = tile / ITEM_BYTES[call.dtype] / plan.blocks
    issue = plan.turns * elements * sum(loop.per_element for loop in (reduce, write, load)) / lanes
    waiting = elements / plan.pieces * reduce.per_element / lanes + CLUSTER_MEETING + LATENCY
    stall = max(0.0, waiting - plan.spare_bytes * plan.blocks * plan.clusters / COPY_RATE)
    return START + 2 * LATENCY + waiting + (plan.turns - 1) * stall + (memory**4 + issue**4) ** 0.25


def main_loops(direction: str, loops: Loops) -> tuple[Loop, Loop]:
    """What reduces and what writes."""
    forward = direction == "forward"
    reduce, write = ("reduce_moments", "normalize") if forward else ("reduce_gradients", "apply_gradients")
    return loops[reduce], loops[write]


def normalization(direction: str, method: str, call: Call, loops: Loops) -> float | None:
    """Seconds of one pass of batch_norm_act; None if the method cannot hold its tiles."""
    reduce, write = main_loops(direction, loops)
    tensors = 1 if direction == "forward" else 2
    if method == "split":
        return split(call, reduce, write, tensors)
    if method == "cluster":
        kernel = "train_cluster" if direction == "forward" else "backward_cluster"
        load = loops.get(f"{kernel}/load", Loop(0))  # channels_last; bulk copies cost next to nothing
        held = loops.get(f"{kernel}/held", reduce)
        return cluster(call, held, loops.get(f"{kernel}/write", write), load, tensors)
    if call.tile_bytes() * tensors > BLOCK_BYTES:
        return None
    reduce, write = (Loop(loop.per_element, ON_CHIP_WARPS, ON_CHIP_IN_FLIGHT) for loop in (reduce, write))
    return on_chip(call, reduce, write, tensors)


def group_normalization(direction: str, method: str, call: Call, loops: Loops) -> float | None:
    """Seconds of one pass of group_norm_act; None if the method cannot hold its groups."""
    reduce, write = main_loops(direction, loops)
    tensors = 1 if direction == "forward" else 2
    if method == "split":
        return tensors * (START + LATENCY) + split(call, reduce, write, tensors)
    groups = 0 if call.group_bytes else GROUPS  # of a sample; 0: not known
    channels = max(1, call.channels // GROUPS)  # of a group
    if not call.group_bytes:
        pixels = min(PIXELS, call.elements / call.channels)
        call = replace(call, group_bytes=pixels * channels * ITEM_BYTES[call.dtype])
    if call.layout == "NHWC":  # what is together has several groups
        together = max(1, 64 // (channels * ITEM_BYTES[call.dtype]))
        groups //= together
        call = replace(call, group_bytes=call.group_bytes * together)
    if method == "cluster":
        plan = cluster_plan(call, tensors)
        if plan is None or channels > CLUSTER_CHANNELS:
            return None
        load = loops.get(f"{direction}_cluster/load", Loop(0))
        held = loops.get(f"{direction}_cluster/held", reduce)
        write = loops.get(f"{direction}_cluster/write", write)
        if direction == "backward" and call.layout == "NCHW":
            words = call.group_bytes / channels / 16 / max(1.0, plan.blocks / channels)  # of one in a block
            own = words / (ON_CHIP_WARPS * 32) * 16 / ITEM_BYTES[call.dtype]  # elements of a thread,
            own = max(16.0, own)  # of at least a piece
            held = replace(held, per_element=held.per_element + CHANNEL_END / own)
        tiles = ceil(call.bytes / call.group_bytes)
        alone = ceil(tiles / plan.turns) == groups  # a cluster has the same channels of every sample
        parameters = 0 if direction == "forward" or alone else EARLY_START + LATENCY
        seconds = cluster(call, held, write, load, tensors)
        return None if seconds is None else seconds + parameters
    if direction == "backward" or call.group_bytes > GROUP_BLOCK_BYTES:
        return None
    both = Loop(reduce.per_element + write.per_element, 2 * ON_CHIP_WARPS)  # two blocks, which overlap
    return START + 3 * LATENCY + stream(call.elements, both, call.read(1), call.written(1))


def reparameterization(direction: str, method: str, call: Call, loops: Loops) -> float | None:
    """Seconds of one pass of reparameterize_kl, whose mu is the tensor of the call."""
    read, written = (2, 1) if direction == "forward" else (3, 2)
    return START + LATENCY + stream(call.elements, loops[direction], read * call.bytes, written * call.bytes)


OPERATORS: dict[str, tuple[Callable[[str, str, Call, Loops], float | None], tuple[str, ...], dict[str, int]]] = {
    # prediction, methods, accesses per element that no method can do without
    "batch_norm_act": (normalization, ("split", "block", "cluster"), {"forward": 2, "backward": 3}),
    "group_norm_act": (group_normalization, ("split", "on_chip", "cluster"), {"forward": 2, "backward": 3}),
    "reparameterize_kl": (reparameterization, ("stream",), {"forward": 3, "backward": 5}),
}


@dataclass(frozen=True)
class Prediction:
    seconds: float
    share_of_copy: float  # of the time in which the bytes that have to move are copied


def predict(
    operator: str, direction: str, method: str, call: Call, loops: Loops | None = None
) -> Prediction | None:
    """Predict one pass of an operator; None if the method is not possible.

    Args:
        operator: A key of OPERATORS.
        direction: "forward" or "backward".
        method: How the operator computes, such as "split".
        call: Size, dtype and layout.
        loops: What check-cuda counted, by kernel; without, kernels that just keep the limits.
    """
    seconds_of, _, must_move = OPERATORS[operator]
    seconds = seconds_of(direction, method, call, loops or limit_loops(call.dtype))
    if seconds is None:
        return None
    accesses = must_move[direction] + (call.dtype == WIDE_OUTPUT)  # in the input's bytes
    return Prediction(seconds, accesses * call.bytes / COPY_RATE / seconds)


def table(loops_of: Callable[[str, str, str], Loops | None] = lambda operator, dtype, layout: None) -> list[str]:
    """Lines with every operator, direction, method, dtype and layout at SHAPES."""
    lines = [f"{'':62}" + "".join(f"{f'{size / 1e6:.0f} MB, C {c}':>15}" for size, c in SHAPES)]
    for operator, (_, methods, _) in OPERATORS.items():
        layouts = ("NCHW", "NHWC") if operator != "reparameterize_kl" else ("",)
        dtypes = ["float32", "bfloat16", *([WIDE_OUTPUT] if operator == "group_norm_act" else [])]
        for direction, method, dtype, layout in product(("forward", "backward"), methods, dtypes, layouts):
            loops = loops_of(operator, dtype, layout)
            calls = [Call(size, dtype, layout, channels) for size, channels in SHAPES]
            found = [predict(operator, direction, method, call, loops) for call in calls]
            cells = [f"{f.seconds * 1e6:.0f} us {f.share_of_copy:3.0%}" if f else "-" for f in found]
            if any(found):
                name = f"{operator} {direction} {method} {dtype} {layout}"
                lines.append(f"{name:62}" + "".join(f"{cell:>15}" for cell in cells))
    return lines


def pair(direction: str, call: Call, cached: float = 0) -> float:
    """Seconds of the two kernels that Inductor makes of a normalisation: one reads, one reads again and writes.

    They move 3 N forward and 5 N backward at the rates of memory and wait as often as ours; their instructions
    cost nothing. `cached` bytes of the second reading come from the L2: none where it begins with what was read
    first, as Inductor's does, and tensors are larger than the L2; L2_KEPT if it began with what was read last.
    """
    read = call.bytes * (1 if direction == "forward" else 2)
    waits = 2 * (START + 2 * LATENCY)
    return waits + read / READ_RATE + (read - min(cached, read) + call.bytes) / COPY_RATE


def predict_all(operator: str, direction: str, call: Call, loops: Loops | None = None) -> dict[str, Prediction]:
    """Predict one pass of an operator with each of its methods that is possible."""
    found = {method: predict(operator, direction, method, call, loops) for method in OPERATORS[operator][1]}
    return {method: prediction for method, prediction in found.items() if prediction}


def targets(loops_of: Callable[[str, str, str], Loops | None] = lambda operator, dtype, layout: None) -> list[str]:
    """Lines that hold the predictions of the normalisations at TARGET_SHAPES to TARGET_SHARE and TARGET_GAIN."""
    lines = [
        f"Targets, of predictions: {TARGET_SHARE:.0%} of a copy, and {TARGET_GAIN} x Inductor's pair of kernels,",
        "which moves 3 N forward and 5 N backward at the rates of memory, without the L2: it reads again from the",
        "beginning, of which the L2 has nothing left. no fit: neither a block nor a cluster holds a tile, so ours",
        "reads twice, too.",
        f"{'':42}" + "".join(f"{f'{size / 1e6:.0f} MB, C {c}':>19}" for size, c in TARGET_SHAPES),
    ]
    met = asked = 0
    cached = []  # the gains if the pair began its second reading with what the L2 still has, as ours does
    for operator, direction, dtype, layout in product(
        ("batch_norm_act", "group_norm_act"), ("forward", "backward"), ("float32", "bfloat16"), ("NCHW", "NHWC")
    ):
        loops = loops_of(operator, dtype, layout)
        cells = []
        for size, channels in TARGET_SHAPES:
            call = Call(size, dtype, layout, channels)
            ways = predict_all(operator, direction, call, loops)
            found = min(ways.values(), key=lambda prediction: prediction.seconds)
            gain = pair(direction, call) / found.seconds
            if list(ways) == ["split"]:
                verdict = "no fit"
            else:
                good = found.share_of_copy >= TARGET_SHARE and gain >= TARGET_GAIN
                verdict = "met" if good else "MISSED"
                asked, met = asked + 1, met + good
                cached.append(pair(direction, call, L2_KEPT) / found.seconds)
            cells.append(f"{found.share_of_copy:.1%} {gain:.2f} {verdict}")
        lines.append(f"{f'{operator} {direction} {dtype} {layout}':42}" + "".join(f"{cell:>19}" for cell in cells))
    gains = f"{min(cached):.2f} to {max(cached):.2f}"
    return [*lines, f"{met} of {asked} met; a pair with {L2_KEPT / 1e6:.0f} MB from the L2, as ours: {gains} x"]
