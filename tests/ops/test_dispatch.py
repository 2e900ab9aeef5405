"""The tables of what the kernels take."""

import contextlib
import re
import threading
import time
from types import SimpleNamespace

import pytest
import torch

import genimg_fast as gf
from genimg_fast import _native
from genimg_fast.ops import _dispatch
from genimg_fast.ops._dispatch import EMPTY, REFERENCE, Kernels, Preference, check_backend, refusal

needs_library = pytest.mark.skipif(not gf.info().native, reason=f"no compiled kernels: {gf.info().load_error}")


def refused(table, size=3):
    reason = table.why_not((torch.ones(size),))
    with gf.backend("native"), pytest.raises(RuntimeError) as error:
        check_backend("name", reason)
    assert str(error.value) == f"name: backend 'native' was asked for, but {reason}"
    with gf.backend("auto"):
        check_backend("name", reason)
    return reason


def test_a_missing_operator_is_refused_in_the_words_of_info():
    table = Kernels("no_such_operator")
    assert not table.in_library
    assert table.describe()["cpu"] == ("torch", refused(table))
    assert "reinstall" in refused(table)


@needs_library
def test_a_limit_is_refused_in_the_words_of_info():
    def unlike(tensors, options):
        n = tensors[0].numel()
        return EMPTY if n == 0 else refusal("even numbers", n) if n % 2 else None

    small = Preference("numbers below 10", lambda n: n < 10)
    table = Kernels("lstm_cell_update", ["even numbers"], unlike, {"cpu": small})
    assert refused(table, 3) == "its kernels take even numbers, got 3"
    path, reason = table.describe()["cpu"]
    assert path == "native"
    assert re.search(r"which take .*; even numbers; torch's own for numbers below 10$", reason)
    for backend in ("auto", "native"):
        with gf.backend(backend):
            assert table.why_not((torch.ones(4),)) is None
            assert table.why_not((torch.ones(0),)) == EMPTY
            check_backend("name", EMPTY)
            assert table.is_slower("cpu", 4) == (backend == "auto")
            assert not table.is_slower("cpu", 12)
            assert not table.is_slower("cuda", 4)
    with gf.backend("reference"):
        assert table.why_not((torch.ones(4),)) == table.describe()["cpu"][1] == REFERENCE


class Gpus:
    """Stands for the GPUs of a machine: what the probe answers of each, and how often each was asked."""

    answers: tuple[str | None, ...] = (None, "cudaErrorInsufficientDriver", "cudaErrorNoKernelImageForDevice")

    def __init__(self):
        self.asked = []

    def probe(self, device):
        self.asked.append(device)
        time.sleep(0.01)  # time for another thread to ask as well
        return self.answers[device], 12080

    def tensor(self, device):
        return SimpleNamespace(is_cpu=False, is_cuda=True, get_device=lambda: device)


@pytest.fixture
def gpus(monkeypatch):
    gpus = Gpus()
    facts = {"nvcc": "13.0", "architectures": "sm_75, sm_90"}
    monkeypatch.setattr(_native, "_cuda_refusals", {})
    monkeypatch.setattr(_native, "probe_cuda", gpus.probe)
    monkeypatch.setattr(_native, "build_facts", lambda: facts)
    monkeypatch.setattr(_dispatch, "_PLAIN_OR_NONE", {SimpleNamespace})
    monkeypatch.setattr(_dispatch, "is_transformed", lambda input: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    return gpus


@pytest.fixture
def table(gpus, monkeypatch):
    table = Kernels("lstm_cell_update")
    monkeypatch.setitem(table._built, "cuda", True)
    return table


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        (1, "built with CUDA 13.0, and .* driver is for CUDA 12.8"),
        (2, "no code for sm_70, cuda:2, only for sm_75"),
    ],
)
def test_a_gpu_on_which_the_kernels_cannot_run_is_left_to_torch(gpu, words, gpus, table):
    assert table.describe()["cuda"][0] == "native"
    for _ in range(3):
        reason = table.why_not((gpus.tensor(gpu),))
        assert re.search(words, reason)
        assert table.why_not((gpus.tensor(0),)) is None
    assert gpus.asked == [0, gpu]
    assert table.describe()[f"cuda:{gpu}"] == ("torch", reason)
    with gf.backend("native"), pytest.raises(RuntimeError, match=f"'native' was asked for, but .*{words}"):
        check_backend("name", reason)
    with gf.backend("auto"):
        check_backend("name", reason)


def test_info_tells_why_the_kernels_cannot_run_on_the_current_gpu(gpus, table, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    path, reason = table.describe()["cuda"]
    assert (path, reason) == ("torch", table.why_not((gpus.tensor(2),)))
    with gf.backend("reference"):
        assert table.describe()["cuda"] == ("reference", REFERENCE)


def test_threads_that_ask_at_once_ask_once(gpus):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(_native.cuda_refusal(1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gpus.asked == [1]
    assert len(answers) == 8
    assert len(set(answers)) == 1
    assert "driver" in answers[0]


def test_a_question_that_a_graph_capture_refused_is_asked_again(gpus):
    gpus.answers = ("cudaErrorStreamCaptureUnsupported",)
    assert _native.cuda_refusal(0) is None
    gpus.answers = ("cudaErrorNoKernelImageForDevice",)
    assert "no code" in _native.cuda_refusal(0)
    assert gpus.asked == [0, 0]


def test_the_question_is_no_break_in_a_compiled_graph(monkeypatch):
    gpus = Gpus()
    monkeypatch.setattr(_native, "_cuda_refusals", {})
    monkeypatch.setattr(_native, "probe_cuda", gpus.probe)
    monkeypatch.setattr(_native, "build_facts", lambda: {"nvcc": "13.0"})

    def route(x):
        for device in (x.get_device() + 1, x.get_device() + 2):  # a CPU tensor's is -1
            x = x + 1 if _native.cuda_refusal(device) is None else x + 10
        return x

    compiled = torch.compile(route, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(())) == 11
    assert gpus.asked == [0, 1]


@needs_library
@pytest.mark.skipif("nvcc" not in _native.build_facts(), reason="the library was built without CUDA kernels")
def test_the_library_answers_the_question(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())  # which of them needs no GPU
    error, driver = _native.probe_cuda(0)
    if torch.cuda.is_available():
        assert error is None
        assert driver >= 11000
    else:
        assert error in ("cudaErrorInsufficientDriver", "cudaErrorNoDevice")
        assert "driver" in _native._in_words("cudaErrorInsufficientDriver", driver, 0)


@needs_library
def test_what_fits_on_a_gpu_is_asked_with_that_gpu_as_the_current_one(monkeypatch):
    # Else its clusters would be counted on another one, and a context made there.
    current = [0]

    @contextlib.contextmanager
    def device(index):
        current.append(index)
        yield
        current.pop()

    asked = []
    library = SimpleNamespace(genimg_fast_recurrent_fits=lambda *call: asked.append((current[-1], *call)) or 1)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(_native.ctypes, "CDLL", lambda path: library)
    assert _native.recurrent_fits(1, torch.bfloat16, 3, 128) is True
    assert asked == [(1, 1, 2, 3, 128)]
    assert current == [0]
