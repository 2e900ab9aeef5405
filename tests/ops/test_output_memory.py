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


def run_with_little_memory(script):
    """Run a script in which `limit(bytes)` allows that much memory more than is in use."""
    prelude = """
import resource, torch
from genimg_fast.ops import batch_norm_act, lstm_cell_update, reparameterize_kl, rnn
torch.set_num_threads(1)
def limit(bytes):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + bytes, resource.RLIM_INFINITY))
"""
    result = subprocess.run([sys.executable, "-c", prelude + script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result


def test_idle_memory_is_given_back_before_there_is_too_little():
    run_with_little_memory("""
x = torch.randn(64, 16, 128, 128)  # 64 MiB
y = batch_norm_act(x, training=True)
del y
limit(16 << 20)
parts = [batch_norm_act(part, training=True) for part in x.split(16)]  # does not fit beside what is idle
""")


CALLS = {
    "batch_norm_act": "batch_norm_act(x, training=True)",
    "reparameterize_kl": "reparameterize_kl(x, x)",
    "reparameterize_kl, per element": "reparameterize_kl(x[:4], x[:4], reduction='none')",
    "lstm_cell_update": "lstm_cell_update(x, x[:, :16])",
    "rnn": "rnn(x.view(256, 128, 512), None, torch.eye(512), torch.eye(512))",
    "rnn, strided": "rnn(x.view(128, 256, 512).transpose(0, 1), None, torch.eye(512), torch.eye(512))",
}


@pytest.mark.parametrize("call", CALLS)
def test_too_little_memory_is_an_error_of_one_line(call):
    result = run_with_little_memory(f"""
x = torch.randn(16, 64, 128, 128)  # 64 MiB
limit(24 << 20)
try:
    {CALLS[call]}
except RuntimeError as error:
    print(error)
""")
    (line,) = result.stdout.splitlines()
    assert line.startswith("DefaultCPUAllocator: can't allocate memory: you tried to allocate ")
    assert "frame #" not in result.stderr


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
