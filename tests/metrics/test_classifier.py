from pathlib import Path

import pytest
import torch

import genimg_fast as gf
from genimg_fast.metrics import ClassifierNetwork, judge_classes


@pytest.fixture(scope="module")
def digits() -> gf.data.ImageDataset:
    return gf.data.load_dataset("digits", image_size=8)


def test_it_reads_the_data_at_hand_and_is_always_the_same(digits: gf.data.ImageDataset, tmp_path: Path) -> None:
    torch.manual_seed(5)
    network = ClassifierNetwork(digits, cache=tmp_path)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are left alone
    assert network.accuracy > 0.9
    assert network.share_right(digits) > 0.95
    assert not any(p.requires_grad for p in network.parameters())
    images = digits[:20][0]
    colour = images.expand(-1, 3, -1, -1)
    torch.testing.assert_close(network(images), network(colour))
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again = ClassifierNetwork(digits, cache=tmp_path)
    assert file.stat().st_mtime_ns == written
    assert again.identity == network.identity
    torch.testing.assert_close(again.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_other_images_or_labels_are_another_network(digits: gf.data.ImageDataset) -> None:
    others = gf.data.ImageDataset(digits.images, (digits.labels + 1) % 10)
    networks = [ClassifierNetwork(data, steps=30) for data in (digits, others)]
    assert networks[0].identity != networks[1].identity
    assert networks[0].share_right(digits) > 0.5 > networks[0].share_right(others)


def test_images_in_colour_of_two_classes_in_any_size() -> None:
    images = torch.zeros(60, 3, 20, 20, dtype=torch.uint8)
    images[::2, 0] = 255  # red or black
    network = ClassifierNetwork(gf.data.ImageDataset(images, torch.arange(60) % 2))
    assert (network.accuracy, network.held_out) == (1, 12)
    assert network(torch.zeros(1, 1, 50, 50))[1].shape == (1, 2)
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        ClassifierNetwork(gf.data.ImageDataset(images))


def test_agreement_and_variation() -> None:
    requested = torch.arange(300) % 3
    judged = torch.where(torch.arange(300) < 30, (requested + 1) % 3, requested)
    real = torch.randn(300, 4) + 100 * requested[:, None]  # classes far apart: that is no variation within one
    report = judge_classes(requested, judged, real * 0.5, requested, real)
    assert report.agreement.value == pytest.approx(0.9)
    assert report.agreement.low < 0.9 < report.agreement.high
    assert report.agreement_by_class == pytest.approx([0.9] * 3)
    assert report.variation is not None
    assert report.variation.value == pytest.approx(0.5)
    assert 0.4 < report.variation.low < 0.5 < report.variation.high < 0.6
    stuck = torch.randn(3, 4)[requested]  # one sample of each class, again and again
    assert judge_classes(requested, judged, stuck, requested, real).variation.value < 1e-6


def test_variation_equals_its_definition() -> None:
    labels, real_labels = torch.randint(3, (80,)), torch.randint(3, (60,))
    features, real = torch.randn(80, 5), 2 * torch.randn(60, 5)

    def spread(x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[classes == k].std(0).mean() for k in range(3)]).mean()

    found = judge_classes(labels, labels, features, real_labels, real).variation
    assert found.value == pytest.approx(float(spread(features, labels) / spread(real, real_labels)))


def test_classes_without_pairs_have_no_variation() -> None:
    labels = torch.arange(4)
    report = judge_classes(labels, labels, torch.randn(4, 2), labels[:2], torch.randn(2, 2))
    assert report.variation is None
    assert report.agreement.value == 1
    report = judge_classes(
        torch.tensor([0, 0, 2]), torch.tensor([0, 0, 2]), torch.randn(3, 2), labels, torch.randn(4, 2)
    )
    assert report.agreement_by_class[0] == 1
    assert report.agreement_by_class[1] != report.agreement_by_class[1]  # NaN
    with pytest.raises(ValueError, match="must be of the same sets"):
        judge_classes(labels, labels[:2], torch.randn(4, 2), labels, torch.randn(4, 2))
