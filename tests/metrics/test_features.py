from pathlib import Path

import pytest
import torch
from torch import Tensor

import genimg_fast as gf
from genimg_fast.metrics import FeatureNetwork, extract_features, real_features


class Pixels(FeatureNetwork):
    dim, num_classes, identity = 4, 2, "pixels"

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))
        self.calls = 0

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        features = images.flatten(1)[:, :4] * self.weight
        return features, features[:, :2]


def dataset(seed: int = 0) -> gf.data.ImageDataset:
    generator = torch.Generator().manual_seed(seed)
    return gf.data.ImageDataset(torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8, generator=generator))


def test_features_are_kept_for_the_same_images_and_network(tmp_path: Path) -> None:
    network = Pixels()
    first = real_features(dataset(), network, cache=tmp_path)
    assert network.calls == 1
    again = real_features(dataset(), network, cache=tmp_path)
    assert network.calls == 1
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.logits, again.logits)
    real_features(dataset(1), network, cache=tmp_path)  # other images
    with torch.no_grad():
        network.weight.mul_(2)
    real_features(dataset(), network, cache=tmp_path)  # another network
    assert network.calls == 3
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("size", [0, 10, 700, -1])
def test_damaged_features_are_computed_again(size: int, tmp_path: Path) -> None:
    network = Pixels()
    first = real_features(dataset(), network, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:size])
    for _ in range(2):
        assert torch.equal(real_features(dataset(), network, cache=tmp_path).features, first.features)
    assert network.calls == 2  # the file was replaced
    assert list(tmp_path.iterdir()) == [file]


def test_a_network_without_parameters(tmp_path: Path) -> None:
    class Corner(FeatureNetwork):
        dim, num_classes, identity = 4, 2, "corner"

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return images[:, 0, 0], images[:, 0, 0, :2]

    for _ in range(2):
        assert real_features(dataset(), Corner(), cache=tmp_path).features.shape == (20, 4)
    assert extract_features([], Corner()).features.shape == (0, 4)
