"""Large outputs of CPU kernels lie in memory that is used again."""

import subprocess
import sys

import pytest
import torch

import genimg_fast as gf
from genimg_fast import _native
from genimg_fast.ops import batch_norm_act, batch_norm_act_reference

pytestmark = pytest.mark.skipif(
    not (sys.platform == "linux" and _native.has_kernel("batch_norm_act_train", "cpu")),
    reason="memory is recycled by the compiled kernels on Linux",
)
LARGE = (8, 16, 128, 128)  # 8 MiB


@pytest.fixture(autouse=True)
def _no_idle_memory():
    gf.empty_cache()
    with gf.backend("native"):
        yield


def test_memory_of_a_freed_output_is_used_again():
    x = torch.randn(LARGE)
    first, second = batch_norm_act(x, training=True), batch_norm_act(x, training=True)
    assert first.data_ptr() != second.data_ptr()
    address, expected = first.data_ptr(), second.clone()
    del first
    third = batch_norm_act(x, training=True)
    assert third.data_ptr() == address
    assert torch.equal(third, expected)
    assert torch.equal(second, expected)


def test_a_much_smaller_output_does_not_take_a_large_block():
    address = batch_norm_act(torch.randn(LARGE), training=True).data_ptr()
    half = batch_norm_act(torch.randn(4, *LARGE[1:]), training=True)
    assert half.data_ptr() != address


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(1 << 15, 65),
        torch.randn(33, 17, 65, 63),
        torch.randn(33, 17, 65, 63).contiguous(memory_format=torch.channels_last),
        torch.randn(1, 5, 900, 900).contiguous(memory_format=torch.channels_last),
        torch.randn(2, 5, 30, 90, 90).contiguous(memory_format=torch.channels_last_3d),
    ],
    ids=lambda x: f"{tuple(x.shape)} {x.stride()}",
)
def test_recycled_outputs_have_torchs_strides_and_values(x):
    for _ in range(2):
        ours = batch_norm_act(x, training=True)
    torchs = batch_norm_act_reference(x.double(), training=True)
    assert ours.stride() == torchs.stride()
    torch.testing.assert_close(ours, torchs.float())


def test_views_keep_the_memory():
    x = torch.randn(LARGE)
    view = batch_norm_act(x, training=True)[3, 4]
    kept = view.clone()
    batch_norm_act(-x, training=True)
    assert torch.equal(view, kept)


def test_peak_counts_what_was_in_use():
    x = torch.randn(LARGE)
    _native.take_output_peak()
    before = _native.take_output_peak()
    batch_norm_act(x, training=True)
    assert _native.take_output_peak() - before == x.nbytes
    assert _native.take_output_peak() == before


def test_empty_cache_unmaps_idle_memory():
    x = torch.randn(LARGE)
    address = batch_norm_act(x, training=True).data_ptr()

    def mapped():
        with open("/proc/self/maps") as lines:
            ranges = [[int(n, 16) for n in line.split()[0].split("-")] for line in lines]
        return any(begin <= address < end for begin, end in ranges)

    assert mapped()
    gf.empty_cache()
    assert not mapped()


def test_forked_processes_have_memory_of_their_own():
    script = """
import os, torch
from genimg_fast.ops import batch_norm_act
torch.set_num_threads(1)
x = torch.randn(8, 16, 128, 128)
y = batch_norm_act(x, training=True)
expected = y.clone()
child = os.fork()
if child == 0:
    del y
    z = batch_norm_act(x, training=True)
    os._exit(0 if torch.equal(z, expected) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.equal(y, expected)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_outputs_survive_pickling_and_sharing(tmp_path):
    y = batch_norm_act(torch.randn(LARGE), training=True)
    expected = y.clone()
    torch.save(y, tmp_path / "y.pt")
    assert torch.equal(torch.load(tmp_path / "y.pt"), expected)
    assert torch.equal(y.share_memory_(), expected)
