import pytest
import torch

import genimg_fast as gf


@pytest.mark.parametrize(("image_size", "patches"), [(16, 6), (64, 30), (256, 30)])
def test_depth_of_the_patch_discriminator_follows_the_image(image_size, patches):
    model = gf.models.Pix2Pix(1, 2, channels=2, image_size=image_size)
    images = torch.randn(1, 1, image_size, image_size)
    assert model.discriminator(images, torch.randn(1, 2, image_size, image_size)).shape == (1, 1, patches, patches)


@pytest.mark.parametrize("network", ["unet", "resnet"])
def test_translate_says_what_varies(network):
    torch.manual_seed(0)
    model = gf.models.Pix2Pix(1, 2, channels=4, image_size=32, network=network).train()
    images = torch.rand(3, 1, 32, 32) * 2 - 1
    model(images)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plain = model.translate(images)
    assert torch.equal(plain, model.translate(images))
    torch.testing.assert_close(plain[:1], model.translate(images[:1]))  # the others play no part
    assert not torch.equal(model.translate(images, dropout=True), model.translate(images, dropout=True))
    assert not torch.allclose(plain, model.translate(images, batch_statistics=True))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("network", ["unet", "resnet"])
def test_instance_norm_judges_each_image_by_itself(network: str) -> None:
    torch.manual_seed(0)
    model = gf.models.Pix2Pix(
        1, 2, channels=4, image_size=32, network=network, dropout=0.0, norm="instance"
    ).train()
    images, targets = torch.rand(3, 1, 32, 32) * 2 - 1, torch.rand(3, 2, 32, 32) * 2 - 1
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules())
    torch.testing.assert_close(model(images)[:1], model(images[:1]))
    torch.testing.assert_close(model.translate(images), model(images))
    logits = model.discriminator(images, targets)
    torch.testing.assert_close(logits[:1], model.discriminator(images[:1], targets[:1]))
    (model(images).square().sum() + logits.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    with pytest.raises(ValueError, match="norm must be one of batch, instance, got 'layer'"):
        gf.models.Pix2Pix(norm="layer")
