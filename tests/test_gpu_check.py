import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_check.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without a GPU")
@pytest.mark.skipif(not SCRIPT.exists(), reason="tests run without the benchmarks")
def test_says_clearly_that_there_is_no_gpu(tmp_path):
    result = subprocess.run([sys.executable, SCRIPT, "--out", tmp_path], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("gpu-check: no NVIDIA GPU is visible")
    assert not list(tmp_path.iterdir())
