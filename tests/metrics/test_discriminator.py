from pathlib import Path

import pytest
import torch

from genimg_fast.metrics import judge_discriminator, plot_roc


def test_discriminators_that_know_all_nothing_or_the_opposite(tmp_path: Path) -> None:
    high, low = torch.linspace(1, 2, 10), torch.linspace(-2, -1, 10)
    assert judge_discriminator(high, low)[:2] == (1, 1)
    assert judge_discriminator(low, high)[:2] == (0, 0)
    same = judge_discriminator(high, high)
    assert same[:2] == (0.5, 0.5)
    plot_roc(same, tmp_path / "roc.png")
    assert (tmp_path / "roc.png").stat().st_size > 1000
    plot_roc(same, tmp_path / "titled.png", title="10 held-out images of $digits")
    assert (tmp_path / "titled.png").read_bytes() != (tmp_path / "roc.png").read_bytes()
    with pytest.raises(ValueError, match="must not be empty"):
        judge_discriminator(high, torch.zeros(0))
    with pytest.raises(ValueError, match="must be finite"):
        judge_discriminator(high, torch.tensor([torch.nan]))
