"""The SIMT emulator itself: it computes what CUDA would, and each of its checks fails when it should."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import simt_build
import torch

RunSanitized = Callable[..., "subprocess.CompletedProcess[str]"]
KERNELS = simt_build.HERE / "selftest.cu"
SEEDS = range(1, 41)


def line_of(marker: str) -> int:
    """The line of selftest.cu with the comment ``// planted: <marker>``."""
    lines = KERNELS.read_text().splitlines()
    (index,) = [i for i, line in enumerate(lines) if f"// planted: {marker}" in line]
    return index + 1


def integers(n: int) -> np.ndarray:
    """Small integers as floats, whose sums are exact in any order."""
    return (np.arange(n) % 7).astype(np.float32)


# what a correct kernel computes.


@pytest.mark.parametrize("seed", [0, 1])
def test_every_thread_of_the_grid_runs_once(emulator: ModuleType, seed: int) -> None:
    emulator.seed(seed)
    grid, block = (3, 2, 2), (5, 4, 2)
    out = emulator.selftest.indices(*grid, *block)
    blocks, threads = np.prod(grid), np.prod(block)
    expected = 1 + np.arange(blocks)[:, None] * 1024 + np.arange(threads)
    np.testing.assert_array_equal(out.reshape(blocks, threads), expected)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("blocks", [1, 3, 9])
def test_split_sum(emulator: ModuleType, seed: int, blocks: int) -> None:
    emulator.seed(seed)
    x = integers(5000)
    assert emulator.selftest.split_sum(x, blocks) == x.sum()
    assert emulator.last_error() == ""


def test_schedules_are_reproducible(emulator: ModuleType) -> None:
    def switches(seed: int) -> int:
        emulator.seed(seed)
        before = emulator.switches()
        emulator.selftest.split_sum(integers(5000), 9)
        return int(emulator.switches() - before)

    assert switches(5) == switches(5)
    assert len({switches(seed) for seed in SEEDS}) > 1


@pytest.mark.parametrize("lanes", [32, 20])
@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_warp_collectives(emulator: ModuleType, lanes: int, width: int, seed: int) -> None:
    emulator.seed(seed)
    x = np.random.default_rng(lanes + width).integers(0, 5, lanes).astype(np.int32)
    lane = np.arange(lanes)
    segment = lane // width * width

    def shuffled(source: np.ndarray) -> np.ndarray:
        inside = np.where((source >= segment) & (source < segment + width), source, lane)
        missing_lane = -1
        return np.where(inside < lanes, x[np.minimum(inside, lanes - 1)], missing_lane)

    bits = 1 << lane.astype(np.int64)
    expected = [
        shuffled(segment + 3),
        shuffled(lane - 3),
        shuffled(lane + 3),
        shuffled(lane ^ 1),
        np.full(lanes, bits[x % 2 == 1].sum()),
        np.full(lanes, 1),
        np.full(lanes, (x == x[0]).all()),
        np.array([bits[x == value].sum() for value in x]),
    ]
    out = emulator.selftest.collectives(x, width=width)[:, :lanes]
    np.testing.assert_array_equal(out.view(np.uint32), np.array(expected, np.int64).astype(np.uint32))


def test_all_lanes_agree(emulator: ModuleType) -> None:
    out = emulator.selftest.collectives(np.full(32, 3, np.int32))
    assert (out[6] == 1).all()


@pytest.mark.parametrize("votes", [0, 1, 69, 70])
def test_barrier_votes(emulator: ModuleType, votes: int) -> None:
    x = (np.arange(70) < votes).astype(np.int32)
    out = emulator.selftest.barrier_votes(x)
    np.testing.assert_array_equal(out, votes * 4 + (votes == 70) * 2 + (votes > 0))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_atomics(emulator: ModuleType, seed: int) -> None:
    emulator.seed(seed)
    blocks, threads = 6, 50
    n = blocks * threads
    ids = np.arange(n, dtype=np.uint32)
    cells = np.zeros(13, np.uint32)
    cells[1] = n
    cells[3] = 1000
    cells[5] = 0xFFFFFFFF
    emulator.selftest.atomics(cells, blocks, threads)
    expected = [
        2 * n,
        0,
        n - 1,
        0,
        0xFFFFFFFF,
        0xFFFF0000,
        np.bitwise_xor.reduce(ids),
        n % 10,
        (10 - n % 10) % 10,
    ]
    np.testing.assert_array_equal(cells[:9], np.array(expected, np.uint32))
    assert cells[9] + cells[10] == ids.sum()  # what was exchanged out, and the last value
    assert cells[11] == 3 * n
    assert cells[12:].view(np.float32)[0] == 0.5 * n


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_spin_lock(emulator: ModuleType, seed: int) -> None:
    emulator.seed(seed)
    emulator.resident_blocks(8)
    assert emulator.selftest.spin_lock(50) == 50


def tiles(count: int, values: int) -> np.ndarray:
    return integers(count * values).reshape(count, values)


def right_walk(x: np.ndarray, out: np.ndarray) -> bool:
    return bool((out == x + x.sum(1, keepdims=True)).all())


@pytest.mark.parametrize("bulk", [True, False])
@pytest.mark.parametrize(
    ("blocks", "cluster", "count"), [(1, 1, 3), (4, 2, 9), (8, 8, 3), (16, 16, 2), (16, 4, 3)]
)
def test_clusters_walk_through_tiles(
    emulator: ModuleType, blocks: int, cluster: int, count: int, bulk: bool
) -> None:
    x = tiles(count, cluster * 128)
    for seed in range(4):
        emulator.seed(seed)
        assert right_walk(x, emulator.selftest.cluster_walk(x, blocks, cluster, bulk))


@pytest.mark.parametrize("cluster", [1, 2, 8])
@pytest.mark.parametrize(("pieces", "slots"), [(1, 1), (1, 2), (3, 3), (3, 4), (2, 5)])
def test_clusters_walk_through_tiles_in_rings(emulator: ModuleType, pieces: int, slots: int, cluster: int) -> None:
    x = tiles(7, (pieces * 512 - 12) * cluster)
    for seed in range(3):
        emulator.seed(seed)
        assert right_walk(x, emulator.selftest.ring_walk(x, pieces, slots, 2 * cluster, cluster))


def sums_of_exchange(cluster: int, rounds: int) -> np.ndarray:
    sums = np.arange(cluster * rounds, dtype=np.float32).reshape(rounds, cluster).sum(1)
    return np.tile(sums, (cluster, 1))


@pytest.mark.parametrize("cluster", [1, 2, 16])
def test_blocks_of_a_cluster_exchange_numbers(emulator: ModuleType, cluster: int) -> None:
    for seed in range(4):
        emulator.seed(seed)
        out = emulator.selftest.cluster_exchange(cluster, 5)
        np.testing.assert_array_equal(out, sums_of_exchange(cluster, 5))


def test_threads_of_an_early_launch_must_wait(emulator: ModuleType) -> None:
    emulator.selftest.early_launch(wait=True)
    with pytest.raises(emulator.SimtError, match=r"62 of 64 threads of an early launch waited"):
        emulator.selftest.early_launch(wait=False)


def test_dynamic_shared_memory(emulator: ModuleType) -> None:
    x = integers(1000)
    np.testing.assert_array_equal(emulator.selftest.dynamic_reverse(x, raise_limit=False), x[::-1])


def test_128_bit_accesses_and_memset(emulator: ModuleType) -> None:
    x = integers(400)
    out = np.empty_like(x)
    emulator.selftest.copy_128(x, out)
    np.testing.assert_array_equal(out, x)
    emulator.selftest.clear(out)
    assert not out.any()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_tensor_core_product(emulator: ModuleType, dtype: torch.dtype, seed: int) -> None:
    """Of integers, which are exact in every type: each element of the fragments has its place."""
    emulator.seed(seed)
    generator = torch.Generator().manual_seed(0)
    a, b, d = (torch.randint(-9, 10, shape, generator=generator) for shape in ((16, 16), (16, 8), (16, 8)))
    bits = (t.to(dtype).view(torch.uint16).numpy() for t in (a, b))
    out = emulator.selftest.mma(dtype == torch.bfloat16, *bits, d.float().numpy(), 32)
    np.testing.assert_array_equal(out, (d + a @ b).numpy())


def test_tensor_cores_take_whole_warps(emulator: ModuleType) -> None:
    with pytest.raises(emulator.SimtError, match="mma needs all lanes"):
        emulator.selftest.mma(True, *np.zeros((2, 16, 16), dtype=np.uint16), np.zeros((16, 8), np.float32), 16)


def test_every_half_and_bfloat16_becomes_the_right_float(emulator: ModuleType) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    as_half = bits.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(emulator.selftest.half_to_float(bits), as_half)
    as_bfloat16 = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(emulator.selftest.bfloat16_to_float(bits), as_bfloat16)


def test_floats_round_to_the_nearest_even_half_and_bfloat16(emulator: ModuleType) -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = np.append((halves[1:] + halves[:-1]) / 2, np.float32(65520))
    near = np.concatenate([halves, ties, np.nextafter(ties, 0), np.nextafter(ties, np.float32(np.inf))])
    x = np.concatenate([near, -near, [np.inf, -np.inf, np.nan, 1e-45, 3e38]]).astype(np.float32)

    with np.errstate(over="ignore"):
        expected_half = x.astype(np.float16)
    np.testing.assert_array_equal(emulator.selftest.float_to_half(x).view(np.float16), expected_half)

    # bfloat16 by arithmetic: the two neighbours, the nearer one, at a tie the even one
    lower = (x.view(np.uint32) & 0xFFFF0000).astype(np.uint32)
    rest = (x.view(np.uint32) & 0xFFFF).astype(np.uint32)
    odd = (lower >> 16) & 1
    up = (rest > 0x8000) | ((rest == 0x8000) & (odd == 1))
    expected = np.where(np.isnan(x), 0x7FFF, (lower >> 16) + up).astype(np.uint16)
    np.testing.assert_array_equal(emulator.selftest.float_to_bfloat16(x), expected)


# planted bugs that give wrong results.


def test_missing_barrier_gives_wrong_results_in_random_schedules(emulator: ModuleType) -> None:
    x = integers(5000)
    wrong = 0
    for seed in SEEDS:
        emulator.seed(seed)
        wrong += emulator.selftest.split_sum(x, 3, bug="missing_barrier") != x.sum()
    assert wrong == len(SEEDS)


def test_missing_second_barrier_gives_wrong_results_in_random_schedules(emulator: ModuleType) -> None:
    wrong = 0
    for seed in (0, *SEEDS):
        emulator.seed(seed)
        assert (emulator.selftest.shared_reuse(True) == 6).all()
        wrong += (emulator.selftest.shared_reuse(False) != 6).any()
    assert wrong >= len(SEEDS) - 1


@pytest.mark.parametrize("bulk", [True, False])
@pytest.mark.parametrize("bug", ["missing_wait", "wrong_phase", "refill_race", "early_peer_read"])
def test_a_cluster_that_does_not_wait_goes_wrong(emulator: ModuleType, bug: str, bulk: bool) -> None:
    """In every schedule: copies take place as late as they can, and until then there is NaN."""
    x = tiles(9, 1024)
    for seed in range(20):
        emulator.seed(seed)
        try:
            right = right_walk(x, emulator.selftest.cluster_walk(x, 4, 2, bulk, bug))
        except emulator.SimtError:
            right = not re.search("no more arrivals|are under way|at mbarriers", emulator.last_error())
        assert not right


@pytest.mark.parametrize("bug", ["missing_wait", "wrong_phase", "early_leave", "ignored_leave"])
@pytest.mark.parametrize(("pieces", "slots"), [(3, 3), (3, 4)])
def test_a_ring_that_does_not_wait_goes_wrong(emulator: ModuleType, pieces: int, slots: int, bug: str) -> None:
    x = tiles(9, (pieces * 512 - 12) * 2)
    for seed in range(10):
        emulator.seed(seed)
        try:
            right = right_walk(x, emulator.selftest.ring_walk(x, pieces, slots, 4, 2, bug))
        except emulator.SimtError:
            right = not re.search("no more arrivals|are under way|at mbarriers|more bytes", emulator.last_error())
        assert not right


def test_blocks_that_exchange_numbers_too_early_go_wrong(emulator: ModuleType) -> None:
    def wrong(bug: str, seed: int) -> bool:
        emulator.seed(seed)
        try:
            return bool((emulator.selftest.cluster_exchange(4, 9, bug) != sums_of_exchange(4, 9)).any())
        except emulator.SimtError:
            return bool(re.search("no more arrivals|more bytes|under way|at mbarriers", emulator.last_error()))

    assert all(wrong("missing_wait", seed) for seed in SEEDS)
    assert sum(wrong("one_place", seed) for seed in SEEDS) > len(SEEDS) // 2


def test_missing_syncwarp_gives_wrong_results(emulator: ModuleType) -> None:
    """Lanes do not run in lockstep, here or on a GPU."""
    reversed_lanes = np.arange(32, dtype=np.float32)[::-1]
    np.testing.assert_array_equal(emulator.selftest.warp_reverse(True), reversed_lanes)
    assert (emulator.selftest.warp_reverse(False) != reversed_lanes).any()


def test_uninitialised_shared_memory_reads_nan(emulator: ModuleType) -> None:
    out = emulator.selftest.uninitialised_shared()
    assert (out[:32] == 1).all()
    assert np.isnan(out[32:]).all()


def test_shuffle_from_a_lane_outside_the_mask_reads_nan(emulator: ModuleType) -> None:
    out = emulator.selftest.lane_outside_mask()
    np.testing.assert_array_equal(out[:8], np.arange(8, 16))
    assert np.isnan(out[8:16]).all()


# planted bugs that end the launch with an error.


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("divergent_barrier", rf"divergent __syncthreads: .*selftest\.cu:{line_of('divergent barrier')}\b"),
        (
            "deadlock",
            r"deadlock: 16 threads wait at __syncthreads \(.*selftest\.cu:\d+\), 16 in warp collectives",
        ),
        ("exited_lane", "exited"),
        ("mixed_collectives", "different warp collectives"),
        ("trap", r"block \(0,0,0\) thread \(0,0,0\): __trap"),
    ],
)
def test_error_in_a_kernel(emulator: ModuleType, kernel: str, message: str, seed: int) -> None:
    emulator.seed(seed)
    with pytest.raises(emulator.SimtError, match=message):
        getattr(emulator.selftest, kernel)()
    assert re.search(message, emulator.last_error())
    x = integers(500)
    assert emulator.selftest.split_sum(x, 3) == x.sum()  # the next launch is not affected
    assert emulator.last_error() == ""


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize(
    ("bug", "bulk", "message"),
    [
        ("bytes_missing", True, r"256 at mbarriers \(one lacks 0 arrivals and 16 bytes\)"),
        ("bytes_unexpected", True, r"256 at mbarriers \(one lacks 0 arrivals and -16 bytes\)"),
        ("misaligned", True, "bulk copy: addresses and size must be multiples of 16"),
        ("misaligned", False, "asynchronous copy: addresses must be multiples of its size"),
        ("no_init", True, "uses an mbarrier that is not initialised"),
    ],
)
def test_misuse_of_asynchronous_copies(
    emulator: ModuleType, bug: str, bulk: bool, message: str, seed: int
) -> None:
    emulator.seed(seed)
    with pytest.raises(emulator.SimtError, match=message):
        emulator.selftest.cluster_walk(tiles(9, 1024), 4, 2, bulk, bug)
    x = tiles(4, 128)
    assert right_walk(x, emulator.selftest.cluster_walk(x, 4, 2))  # the next launch is not affected


def test_block_that_leaves_while_a_peer_reads_its_shared_memory(emulator: ModuleType) -> None:
    found = 0
    for seed in SEEDS:
        emulator.seed(seed)
        try:
            emulator.selftest.cluster_walk(tiles(2, 256), 4, 4, True, "early_exit")
        except emulator.SimtError:
            found += "shared memory of a block that has exited" in emulator.last_error()
    assert found


@pytest.mark.parametrize("seed", [0, 1])
def test_waiting_for_a_block_that_has_not_started_is_a_livelock(emulator: ModuleType, seed: int) -> None:
    emulator.seed(seed)
    emulator.resident_blocks(2)
    with pytest.raises(emulator.SimtError, match="livelock"):
        emulator.selftest.grid_barrier(4)
    emulator.resident_blocks(4)
    emulator.selftest.grid_barrier(4)


def test_invalid_launches(emulator: ModuleType) -> None:
    selftest = emulator.selftest
    with pytest.raises(emulator.SimtError, match=r"block \(1025, 1, 1\) \[error 9\]"):
        selftest.large_block(1025)
    with pytest.raises(emulator.SimtError, match=r"block \(0, 1, 1\)"):
        selftest.large_block(0)
    with pytest.raises(emulator.SimtError, match=r"grid \(1, 65536, 1\)"):
        selftest.indices(1, 65536, 1, 1, 1, 1)
    with pytest.raises(emulator.SimtError, match=r"grid \(0, 1, 1\)"):
        selftest.indices(0, 1, 1, 1, 1, 1)
    for blocks, cluster in ((5, 2), (6, 3), (32, 32)):
        with pytest.raises(emulator.SimtError, match=rf"clusters of {cluster} blocks in a grid of {blocks} .*912"):
            selftest.cluster_walk(tiles(1, cluster * 8), blocks, cluster)


def test_more_than_48_kib_of_shared_memory_must_be_asked_for(emulator: ModuleType) -> None:
    x = integers(50_000)  # 200,000 bytes
    with pytest.raises(emulator.SimtError, match="set_max_dynamic_smem"):
        emulator.selftest.dynamic_reverse(x, raise_limit=False)
    np.testing.assert_array_equal(emulator.selftest.dynamic_reverse(x, raise_limit=True), x[::-1])
    with pytest.raises(emulator.SimtError, match="the limit is 232448"):
        emulator.selftest.dynamic_reverse(integers(60_000), raise_limit=True)


def test_multiprocessors_limit_the_clusters_that_run_at_a_time(emulator: ModuleType) -> None:
    emulator.multiprocessors(2)
    assert emulator.selftest.clusters_of_2() == 2


# sanitizers.

PRELUDE = """
import numpy as np
import simt_kernels as emulator
selftest = emulator.selftest
x = (np.arange(5000) % 7).astype(np.float32)
"""

CLEAN = (
    PRELUDE
    + """
for seed in (0, 1, 2):
    emulator.seed(seed)
    assert selftest.split_sum(x, 9) == x.sum()
    assert (selftest.shared_reuse(True) == 6).all()
    selftest.warp_reverse(True)
    selftest.collectives(np.arange(32, dtype=np.int32), width=8)
    selftest.barrier_votes(np.arange(70, dtype=np.int32))
    selftest.atomics(np.zeros(13, np.uint32), 6, 50)
    assert selftest.spin_lock(20) == 20
    for bulk in (True, False):
        tiles = x[:4608].reshape(9, -1)
        assert (selftest.cluster_walk(tiles, 4, 2, bulk) == tiles + tiles.sum(1, keepdims=True)).all()
        selftest.cluster_walk(tiles[:3], 8, 8, bulk)
    selftest.cluster_exchange(4, 9)
    assert (selftest.dynamic_reverse(x, raise_limit=False) == x[::-1]).all()
    selftest.copy_128(x, np.empty_like(x))
    selftest.float_to_half(x)
    selftest.float_to_bfloat16(x)
"""
)


@pytest.mark.sanitizer
@pytest.mark.parametrize("variant", ["asan", "tsan"])
def test_sanitizers_are_silent_on_correct_kernels(run_sanitized: RunSanitized, variant: str) -> None:
    done = run_sanitized(variant, CLEAN)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.sanitizer
@pytest.mark.parametrize("variant", ["asan", "tsan"])
def test_sanitizers_are_silent_after_a_failed_launch(run_sanitized: RunSanitized, variant: str) -> None:
    """What the threads of the failed launch left behind must not look like a bug of the next."""
    fail = """
for kernel in (selftest.deadlock, selftest.divergent_barrier, selftest.exited_lane, selftest.trap):
    try:
        kernel()
    except emulator.SimtError:
        assert selftest.split_sum(x, 9) == x.sum()
    else:
        raise AssertionError
"""
    done = run_sanitized(variant, PRELUDE + fail)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.sanitizer
@pytest.mark.parametrize(
    ("call", "report", "marker"),
    [
        ("selftest.split_sum(x, 3, bug='global_overrun')", "heap-buffer-overflow", "global overrun"),
        ("selftest.split_sum(x, 3, bug='shared_overrun')", "use-after-poison", "shared overrun"),
        ("selftest.misaligned_load(x)", "misaligned address", "misaligned"),
    ],
)
def test_asan_and_ubsan_name_it(run_sanitized: RunSanitized, call: str, report: str, marker: str) -> None:
    done = run_sanitized("asan", PRELUDE + call)
    assert done.returncode != 0
    assert report in done.stderr
    assert f"selftest.cu:{line_of(marker)}" in done.stderr, done.stderr


@pytest.mark.sanitizer
@pytest.mark.parametrize(
    ("resident", "bug", "marker"),
    [
        (4, "missing_barrier", "race without the barrier"),
        (4, "missing_fence", "race without the fence"),
        (1, "missing_fence", "race without the fence"),  # between blocks that do not meet in the emulator
    ],
)
def test_tsan_names_the_line_of_a_race(run_sanitized: RunSanitized, resident: int, bug: str, marker: str) -> None:
    call = f"emulator.resident_blocks({resident})\nselftest.split_sum(x, 3, bug='{bug}')"
    done = run_sanitized("tsan", PRELUDE + call)
    assert done.returncode == 66, done.stderr
    assert "data race" in done.stderr
    assert f"selftest.cu:{line_of(marker)}" in done.stderr, done.stderr


@pytest.mark.sanitizer
@pytest.mark.parametrize(
    ("call", "marker"),
    [
        ("walk(x, 4, 2, True, 'missing_wait')", "race without the wait"),
        ("walk(x, 4, 2, True, 'refill_race')", "race with the refill"),
        ("walk(x, 4, 2, True, 'early_peer_read')", "race without the cluster's barrier"),
        ("walk(x, 4, 2, True, 'early_exit')", "race without the cluster's barrier"),
    ],
)
def test_tsan_names_the_line_of_a_race_in_a_cluster(run_sanitized: RunSanitized, call: str, marker: str) -> None:
    names = "x, walk = x[:1152].reshape(9, -1), selftest.cluster_walk\n"
    done = run_sanitized("tsan", PRELUDE + names + call)
    assert done.returncode == 66, done.stderr
    assert "data race" in done.stderr
    assert f"selftest.cu:{line_of(marker)}" in done.stderr, done.stderr


# the other halves.


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_the_same_kernels_compile_under_nvcc(tmp_path: Path) -> None:
    """With the flags torch gives nvcc, which take the implicit conversions of 16-bit types away."""
    torch_flags = ["HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS", "HALF2_OPERATORS"]
    command = ["nvcc", "-std=c++17", "-O3", *(f"-D__CUDA_NO_{flag}__" for flag in torch_flags)]
    command += [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in (75, 90)]
    command += ["-Icsrc/cuda", "-c", str(KERNELS), "-o", str(tmp_path / "selftest.o")]
    done = subprocess.run(command, cwd=simt_build.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which(simt_build.compiler()) is None, reason="no C++ compiler")
def test_fibers_of_other_processors(tmp_path: Path) -> None:
    """The ucontext fallback, which x86-64 does not use, in a program of its own."""
    main = tmp_path / "main.cpp"
    main.write_text(
        """
        #include <vector>
        #include "selftest.h"
        #include "simt.h"
        int main() {
          for (int seed = 0; seed < 3; ++seed) {
            simt::set_seed(seed);
            std::vector<float> x(1000, 1.0f), partials(5);
            unsigned finished = 0;
            float total = 0;
            const auto bug = selftest::Bug::none;
            if (selftest::split_sum(bug, x.data(), partials.data(), &finished, &total, 1000, 5)) return 1;
            if (total != 1000) return 2;
            if (selftest::deadlock(x.data()) != simt::launch_failure) return 3;
          }
        }
        """
    )
    program = tmp_path / "program"
    command = [simt_build.compiler(), *simt_build.COMMON_FLAGS, "-DSIMT_UCONTEXT", "-x", "c++", str(main)]
    command += [str(simt_build.HERE / "simt.cpp"), str(KERNELS), "-o", str(program)]
    subprocess.run(command, cwd=simt_build.ROOT, check=True)
    subprocess.run([program], check=True)
