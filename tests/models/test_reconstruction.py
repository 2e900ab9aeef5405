import torch

import genimg_fast as gf


def test_codes_stay_in_the_unit_ball():
    torch.manual_seed(0)
    model = gf.models.GLO(50, 8, 2, 4, 2)
    assert model.codes.weight.norm(dim=1).max() <= 1 + 1e-6
    with torch.no_grad():
        model.codes.weight.mul_(3)
    model.project_codes()
    assert model.codes.weight.norm(dim=1).max() <= 1 + 1e-6
    first, second = (model.sample(4, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert first.shape == (4, 2, 16, 16)
    assert torch.equal(first, second)


def test_deep_image_prior_fits_an_image():
    torch.manual_seed(0)
    model = gf.models.DeepImagePrior(1, 16, 2, 16)
    target = torch.linspace(-0.8, 0.8, 16).expand(1, 1, 16, 16)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        loss = (model() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02
