from pathlib import Path

import pytest
import torch

from genimg_fast.metrics import PerceptualSimilarity, psnr, ssim


def test_psnr_and_ssim_equal_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    torch.manual_seed(0)
    a, b = torch.rand(2, 3, 2, 24, 24) * 2 - 1
    each = [functional.peak_signal_noise_ratio(x, y, data_range=2.0) for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(psnr(a, b), torch.stack(each))
    assert psnr(a, a).isinf().all()
    torch.testing.assert_close(ssim(a, a), torch.ones(3))
    expected = functional.structural_similarity_index_measure(a / 2 + 0.5, b / 2 + 0.5, data_range=1.0)
    torch.testing.assert_close(ssim(a, b).mean(), expected)
    constant = torch.zeros(1, 1, 16, 16)
    assert ssim(constant, constant + 0.1).item() > 0.99
    with pytest.raises(ValueError, match="must have the same shape"):
        psnr(a, b[:1])
    with pytest.raises(ValueError, match="at least 11 pixels a side, the size of the window, got 24x10"):
        ssim(a[..., :10], b[..., :10])


def test_perceptual_similarity_with_a_network_of_ones_own() -> None:
    distance = PerceptualSimilarity(lambda a, b: (a - b).abs().mean((1, 2, 3), keepdim=True))
    assert distance(torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)).tolist() == [1, 1]


@pytest.mark.filterwarnings("ignore:.*deprecated since 0.13:UserWarning")  # lpips asks torchvision the old way
def test_backbones_of_perceptual_similarity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="backbone must be one of alex, vgg, squeeze, or a module, got 'foo'"):
        PerceptualSimilarity("foo")
    models = pytest.importorskip("torchvision.models")
    pytest.importorskip("lpips")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for backbone in ("alex", "vgg", "squeeze"):
        with pytest.raises(FileNotFoundError, match=r"\.pth: put https://.* there or pass download=True"):
            PerceptualSimilarity(backbone)
    weights = tmp_path / "hub" / "checkpoints" / Path(models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url).name
    weights.parent.mkdir(parents=True)
    torch.save(models.squeezenet1_1().state_dict(), weights)
    images = torch.rand(2, 3, 32, 32)
    assert PerceptualSimilarity("squeeze")(images, images).tolist() == [0, 0]
