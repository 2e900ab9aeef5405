from pathlib import Path

import pytest
import torch
from torch import Tensor

import genimg_fast as gf
from genimg_fast.metrics import (
    FidelityNetwork,
    GaussianStatistics,
    InceptionNetwork,
    RandomNetwork,
    frechet_distance,
)


def test_random_network_is_always_the_same_and_tells_sets_apart() -> None:
    torch.manual_seed(1)
    network = RandomNetwork()
    torch.manual_seed(2)
    torch.testing.assert_close(network.state_dict(), RandomNetwork().state_dict(), rtol=0, atol=0)
    data = gf.data.load_dataset("digits", image_size=16)

    def statistics(images: Tensor) -> GaussianStatistics:
        found = GaussianStatistics(network.dim)
        found.update(network(images)[0])
        return found

    halves = [statistics(data[start::2][0]) for start in (0, 1)]
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(900, 1, 16, 16, generator=generator) * 2 - 1
    shuffled = data[:900][0].flatten(1)[:, torch.randperm(256, generator=generator)].view(-1, 1, 16, 16)
    floor = frechet_distance(*halves)
    for others in (noise, shuffled):
        assert frechet_distance(halves[0], statistics(others)) > 10 * floor
    assert network(torch.zeros(3, 3, 40, 40))[1].shape == (3, 0)


def test_inception_network(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    weights = tmp_path / "inception.pt"
    torch.save(torchvision.models.inception_v3(weights=None, init_weights=False).state_dict(), weights)
    network = InceptionNetwork(weights)
    features, logits = network(torch.rand(2, 1, 32, 32) * 2 - 1)
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1000)
    torch.save({"a": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match="does not hold the weights of inception_v3"):
        InceptionNetwork(weights)
    with pytest.raises(
        FileNotFoundError, match="needs a file of weights, or leave to download them: --weights or --download"
    ):
        InceptionNetwork()


def save_untrained_fidelity_weights(file: Path, monkeypatch: pytest.MonkeyPatch) -> type:
    """Write a file like torch-fidelity's, of random weights; return the class of the network."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    extractor = module.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(extractor, "load_state_dict", lambda self, state: None)
        torch.save(extractor("inception-v3-compat", ["2048"]).state_dict(), file)
    return extractor


def test_fidelity_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "weights.pth"
    extractor = save_untrained_fidelity_weights(weights, monkeypatch)
    theirs = extractor("inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights)
    pixels = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    network = FidelityNetwork(weights)
    found = network(pixels / 127.5 - 1)
    torch.testing.assert_close(found, theirs(pixels.expand(-1, 3, -1, -1)), rtol=0, atol=0)
    assert not network.published
    assert "other weights than published" in network.identity


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")

    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "it ran",))

    torch.save({"weights": Harmful()}, tmp_path / "weights.pth")
    with pytest.raises(
        ValueError, match=r"weights\.pth does not hold the weights of torch-fidelity's inception-v3"
    ):
        FidelityNetwork(tmp_path / "weights.pth")
    assert not (tmp_path / "it ran").exists()
