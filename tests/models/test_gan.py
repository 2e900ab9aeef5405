import pytest
import torch

import genimg_fast as gf


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        # 100-256-512-784 and 784-512-256-1, weights and biases.
        (gf.models.MLPGenerator, 100 * 256 + 256 + 256 * 512 + 512 + 512 * 784 + 784),
        (gf.models.MLPDiscriminator, 784 * 512 + 512 + 512 * 256 + 256 + 256 + 1),
        # As printed by the paper's authors' PyTorch implementation: 54.414 M and 2.769 M.
        (lambda: gf.models.UNetGenerator(3, 3), 54_414_531),
        (lambda: gf.models.PatchDiscriminator(6), 2_768_705),
    ],
)
def test_parameter_counts(build, expected):
    assert parameters(build()) == expected


@pytest.mark.parametrize(
    "build",
    [
        lambda: gf.models.WGAN(8, 2, 4, 2),
        lambda: gf.models.WGAN(8, 2, 4, 2, norm="spectral"),
        lambda: gf.models.ResidualGAN(8, 2, 4, 2),
        lambda: gf.models.ResidualGAN(8, 2, 4, 2, norm="spectral"),
        lambda: gf.models.MLPGAN(8, 2, 16, (12,)),
    ],
)
def test_critics_judge_each_image_alone(build):
    """What a gradient penalty needs: a logit depends on its own image only, in training mode too."""
    torch.manual_seed(0)
    critic = build().discriminator.train()
    images = torch.randn(4, 2, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(critic(images)[0], images)
    assert gradient[0].abs().sum() > 0
    assert gradient[1:].abs().sum() == 0


def test_spectral_norm_bounds_the_weights():
    torch.manual_seed(0)
    critic = gf.models.WGAN(8, 2, 4, 2, norm="spectral").discriminator
    for _ in range(30):  # each takes a step of the power iteration
        critic(torch.randn(2, 2, 16, 16))
    for layer in critic.main:
        if isinstance(layer, torch.nn.Conv2d):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("condition", ["projection", "concat"])
def test_both_networks_see_the_class(condition):
    torch.manual_seed(0)
    model = gf.models.ConditionalDCGAN(3, 8, 2, 4, 2, condition=condition).eval()
    z, first, second = torch.randn(4, 8), torch.zeros(4, dtype=torch.int64), torch.full((4,), 2)
    images = model(z, first)
    assert not torch.equal(images, model(z, second))
    assert not torch.equal(model.discriminator(images, first), model.discriminator(images, second))
    assert model.discriminator(images, first).shape == (4,)


@pytest.mark.parametrize("condition", ["projection", "concat"])
def test_the_last_layer_sees_how_much_a_class_varies(condition):
    torch.manual_seed(0)
    model = gf.models.ConditionalDCGAN(3, 8, 2, 4, 2, condition=condition, minibatch_std=True)
    discriminator = model.discriminator.eval()  # so that batch norm does not mix the images
    images, labels = torch.randn(6, 2, 16, 16), torch.tensor([0, 1, 0, 2, 1, 0])
    features = []
    discriminator.main[-1].register_forward_pre_hook(lambda layer, inputs: features.append(inputs[0]))
    assert discriminator(images, labels).shape == (6,)
    *own, seen = features[0].unbind(1)
    own = torch.stack(own, 1)
    for k in range(3):
        expected = own[labels == k].std(0, correction=0).mean()
        # What is added to the variance shows where there is none.
        assert (seen[labels == k] - expected).abs().max() <= 1.001e-3

    images = images.requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images, labels)[0], images)
    assert gradient.isfinite().all()
    assert [bool(g.any()) for g in gradient] == [True, False, True, False, False, True]  # those of its class


def test_samples_of_classes():
    torch.manual_seed(0)
    model = gf.models.ConditionalDCGAN(3, 8, 2, 4, 2)
    generator = torch.Generator()
    by_default = model.sample(6, generator=generator.manual_seed(1))
    in_order = model.sample(6, labels=torch.tensor([0, 0, 1, 1, 2, 2]), generator=generator.manual_seed(1))
    assert torch.equal(by_default, in_order)
    assert model.sample(2, labels=1).shape == (2, 2, 16, 16)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2, got 3"):
        model.sample(2, labels=3)
    with pytest.raises(ValueError, match="labels are for class-conditional models"):
        gf.models.DCGAN(8, 2, 4, 2)(torch.randn(2, 8), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"labels of shape \(2,\) are needed"):
        model(torch.randn(2, 8))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gf.models.DCGAN(norm="layer"), "norm must be one of batch, spectral, none, got 'layer'"),
        (lambda: gf.models.WGAN(norm="batch"), "norm of a critic must be 'none' or 'spectral', got 'batch'"),
        (lambda: gf.models.ConditionalDCGAN(0), "num_classes must be at least 1, got 0"),
        (lambda: gf.models.ConditionalDCGAN(3, condition="both"), "condition must be 'concat' or 'projection'"),
        (lambda: gf.models.ResidualGAN(norm="batch"), "norm must be 'none' or 'spectral', got 'batch'"),
        (lambda: gf.models.MLPGAN(hidden=(3, 0)), r"hidden\[1\] must be at least 1, got 0"),
        (lambda: gf.models.Pix2Pix(image_size=48), "image_size must be a power of two, at least 8, got 48"),
        (lambda: gf.models.Pix2Pix(network="vgg"), "network must be 'unet' or 'resnet', got 'vgg'"),
        (lambda: gf.models.DeepImagePrior(image_size=20), "image_size must be multiples of 16, from 32 on"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def random_images(size):
    images = torch.randint(0, 256, (100, 1, size, size), dtype=torch.uint8)
    return gf.data.ImageDataset(images, torch.arange(100) % 10)


class TutorialGenerator(torch.nn.Module):
    """Plain modules, with noise and labels in a form of their own."""

    def __init__(self, num_classes=0):
        super().__init__()
        self.classes = torch.nn.Embedding(num_classes, 8) if num_classes else None
        self.main = torch.nn.Sequential(
            torch.nn.ConvTranspose2d(8, 4, 4), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
            torch.nn.ConvTranspose2d(4, 1, 4, 2, 1), torch.nn.Tanh(),
        )  # fmt: skip

    def forward(self, noise, *labels):
        return self.main(noise + self.classes(*labels)[:, :, None, None] if labels else noise)


class TutorialDiscriminator(torch.nn.Module):
    def __init__(self, num_classes=0):
        super().__init__()
        self.main = torch.nn.Conv2d(1, max(1, num_classes), 8)

    def forward(self, images, *labels):
        logits = self.main(images)
        return logits.flatten(1).gather(1, labels[0][:, None]) if labels else logits


@pytest.mark.parametrize("num_classes", [0, 10])
def test_plain_modules_train(num_classes):
    generator, discriminator = TutorialGenerator(num_classes), TutorialDiscriminator(num_classes)
    trained = [generator.main[0].weight, generator.main[3].weight, discriminator.main.weight]
    before = [weight.clone() for weight in trained]
    model = gf.models.PlainGAN(generator, discriminator, noise_shape=(8, 1, 1), num_classes=num_classes)
    assert (model.c_dim, model.image_size, model.generator.z_dim) == (1, 8, 8)
    trainer = gf.training.GANTrainer(model, loss="hinge", r1=0.1, gp=0.1)
    data = random_images(8)
    gf.training.fit(trainer, data, steps=2, batch_size=16, validation=data.split(0.1)[1])
    assert not any(map(torch.equal, before, trained))
    assert trainer.samples(4).shape == (4, 1, 8, 8)
    assert trainer.pictures(*data[:4])["samples"].images.shape[1:] == (1, 8, 8)


def test_plain_modules_train_as_ours_do():
    data = random_images(16)
    histories = []
    for plain in (False, True):
        torch.manual_seed(0)
        model = gf.models.DCGAN(8, 1, 4, 2)
        if plain:
            model = gf.models.PlainGAN(model.generator, model.discriminator, noise_shape=(8, 1, 1))
        rows = gf.training.fit(gf.training.GANTrainer(model), data, steps=4, batch_size=16, log_every=1)
        histories.append([(row["loss_d"], row["loss_g"]) for row in rows])
    assert histories[0] == histories[1]


def test_plain_modules_that_do_not_fit_are_refused():
    generator, discriminator = TutorialGenerator(), TutorialDiscriminator()
    with pytest.raises(ValueError, match=r"square images, .* of shape \(1, 8, 2, 1\), got \(1, 1, 10, 8\)"):
        gf.models.PlainGAN(generator, discriminator, noise_shape=(8, 2, 1))
    ending = torch.nn.Sequential(discriminator, torch.nn.Sigmoid())
    with pytest.raises(ValueError, match="ends in a Sigmoid, and the losses take logits"):
        gf.models.PlainGAN(generator, ending, noise_shape=(8, 1, 1))
    with pytest.raises(ValueError, match=r"noise_shape must be a shape, such as \(8,\), got 8"):
        gf.models.PlainGAN(generator, discriminator, noise_shape=8)
    with pytest.raises(ValueError, match="generator has no parameters"):
        gf.models.PlainGAN(torch.nn.Tanh(), discriminator, noise_shape=(1, 8, 8))
    two = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    with pytest.raises(ValueError, match=r"must return one logit an image, got \(3, 2\) for 3"):
        gf.models.PlainGAN(generator, two, noise_shape=(8, 1, 1)).discriminator(torch.zeros(3, 1, 8, 8))
