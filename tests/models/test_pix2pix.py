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
