"""The loops that people start from, with torch.nn's layers, which whole steps of ours are compared with.

Each takes a model, whose layers it replaces by torch.nn's, how to run it, and a batch; it returns a function that
takes a step and returns its losses. Those that this package's trainers return, too, have the same names.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg_fast._fuse import unfuse
from genimg_fast.ops import reparameterize_kl_reference
from genimg_fast.training import Recipe
from genimg_fast.training.gan import frozen

Step = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Setting:
    """How a loop runs.

    Attributes:
        device: Where.
        compiled: Whether networks go through ``torch.compile`` and Adam is one kernel, and not as it is published.
        recipe: Precision and memory format.
        alike: Whether to do what this package's trainers do otherwise, to be compared with them: where a VAE's
            noise comes from, how often WGAN's images are made, half of what CycleGAN's judges cost.
    """

    device: str
    compiled: bool = False
    recipe: Recipe = field(default_factory=Recipe)
    alike: bool = False

    def plain(self, model: Any) -> Any:
        """Move a model to the device, with torch.nn's layers in the memory format."""
        model = unfuse(model).to(self.device)
        return model.to(memory_format=torch.channels_last) if self.recipe.channels_last else model

    def runs(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a network or a function, if the loop is to be."""
        if not self.compiled:
            return function
        return torch.compile(function, mode="default" if self.device == "cpu" else "reduce-overhead")

    def adam(self, parameters: Iterable[Any], lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
        """Make an optimiser."""
        return torch.optim.Adam(parameters, lr=lr, betas=betas, fused=self.compiled)

    def laid_out(self, images: Tensor) -> Tensor:
        """Put images into the memory format."""
        return images.contiguous(memory_format=torch.channels_last) if self.recipe.channels_last else images

    def begin(self) -> None:
        """Begin a step: what was compiled with CUDA graphs may write over the results of the last one."""
        if self.compiled:
            torch.compiler.cudagraph_mark_step_begin()

    def autocast(self) -> torch.autocast:
        """Run in the precision."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.recipe.precision == "bf16")


def gan(model: Any, setting: Setting, images: Tensor, labels: Tensor | None = None) -> Step:
    """github.com/pytorch/examples, dcgan/main.py; with the classes of the images, if the networks know them."""
    model, images, device = setting.plain(model), setting.laid_out(images), setting.device
    generator, discriminator = setting.runs(model.generator), setting.runs(model.discriminator)
    optimizer_g, optimizer_d = (
        setting.adam(network.parameters(), 2e-4, (0.5, 0.999))
        for network in (model.generator, model.discriminator)
    )

    def judged(images: Tensor, label: float) -> tuple[Tensor, Tensor]:
        logits = discriminator(images, labels)
        wanted = torch.full((len(images),), label, device=device)
        if not setting.compiled:
            output = logits.sigmoid()
            return nn.BCELoss()(output, wanted), output.mean()
        # In one function, which autocast allows.
        return F.binary_cross_entropy_with_logits(logits.float(), wanted), logits.detach().sigmoid().mean()

    def step() -> dict[str, float]:
        setting.begin()
        optimizer_d.zero_grad()
        with setting.autocast():
            loss_real, mean_real = judged(images, 1.0)
        loss_real.backward()
        with setting.autocast():
            fake = generator(torch.randn(len(images), model.generator.z_dim, device=device), labels)
            loss_fake, mean_fake = judged(fake.detach(), 0.0)
        loss_fake.backward()
        optimizer_d.step()
        optimizer_g.zero_grad()
        with setting.autocast():
            loss_g, mean_g = judged(fake, 1.0)
        loss_g.backward()
        optimizer_g.step()
        values = loss_real + loss_fake, loss_g, mean_real, mean_fake, mean_g
        names = "loss_d", "loss_g", "real", "fake", "fake_later"
        return {name: value.item() for name, value in zip(names, values, strict=True)}

    return step


def wgan(model: Any, setting: Setting, images: Tensor) -> Step:
    """github.com/eriklindernoren/PyTorch-GAN, implementations/wgan_gp, with a step of the generator every time.

    torch.compile has no gradients of gradients: the penalty is not compiled, and in float32.
    """
    model, images, device = setting.plain(model), setting.laid_out(images), setting.device
    generator, critic = setting.runs(model.generator), setting.runs(model.discriminator)
    optimizer_g, optimizer_d = (
        setting.adam(network.parameters(), 2e-4, (0.5, 0.999))
        for network in (model.generator, model.discriminator)
    )

    def penalty(fake: Tensor) -> Tensor:
        share = torch.rand(len(images), 1, 1, 1, device=device)
        between = (share * images + (1 - share) * fake).requires_grad_()
        judged = model.discriminator(between)
        (slope,) = torch.autograd.grad(judged, between, torch.ones_like(judged), create_graph=True)
        return ((slope.flatten(1).norm(2, dim=1) - 1) ** 2).mean()

    def step() -> dict[str, float]:
        setting.begin()
        optimizer_d.zero_grad()
        z = torch.randn(len(images), model.generator.z_dim, device=device)
        with setting.autocast():
            fake = generator(z)
            loss_d = critic(fake.detach()).mean() - critic(images).mean()
        loss_d = loss_d + 10 * penalty(fake.detach().float())
        loss_d.backward()
        optimizer_d.step()
        optimizer_g.zero_grad()
        with setting.autocast():
            # The same images, made once more; what is different are running statistics.
            loss_g = -critic(fake if setting.alike else generator(z)).mean()
        loss_g.backward()
        optimizer_g.step()
        return {"loss_d": loss_d.item(), "loss_g": loss_g.item()}

    return step


def pix2pix(model: Any, setting: Setting, pairs: Tensor) -> Step:
    """github.com/junyanz/pytorch-CycleGAN-and-pix2pix, models/pix2pix_model.py, on pairs side by side.

    There, the discriminator sees real images after the others, which only its running statistics tell.
    """
    model = setting.plain(model)
    given, real = (setting.laid_out(half.contiguous()) for half in pairs.chunk(2, dim=3))
    generator, discriminator = setting.runs(model.generator), setting.runs(model.discriminator)
    optimizer_g, optimizer_d = (
        setting.adam(network.parameters(), 2e-4, (0.5, 0.999))
        for network in (model.generator, model.discriminator)
    )

    def judged(images: Tensor, label: float) -> Tensor:
        logits = discriminator(given, images).float()
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))

    def step() -> dict[str, float]:
        setting.begin()
        with setting.autocast():
            fake = generator(given)
        optimizer_d.zero_grad()
        with setting.autocast():
            loss_d = 0.5 * (judged(real, 1.0) + judged(fake.detach(), 0.0))
        loss_d.backward()
        optimizer_d.step()
        with frozen(model.discriminator):
            optimizer_g.zero_grad()
            with setting.autocast():
                loss_g = judged(fake, 1.0)
            error = (fake.float() - real).abs().mean()
            (loss_g + 100 * error).backward()
            optimizer_g.step()
        return {"loss_d": loss_d.item(), "loss_g": loss_g.item(), "l1": error.item()}

    return step


def cyclegan(model: Any, setting: Setting, images: Tensor) -> Step:
    """The same repository's models/cycle_gan_model.py, without its buffer of earlier images."""
    model = setting.plain(model)
    a, b = (setting.laid_out(half.contiguous()) for half in images.chunk(2, dim=3))
    a2b, b2a, judge_a, judge_b = map(setting.runs, (model.a2b, model.b2a, model.judge_a, model.judge_b))
    optimizer_g = setting.adam([*model.a2b.parameters(), *model.b2a.parameters()], 2e-4, (0.5, 0.999))
    optimizer_d = setting.adam([*model.judge_a.parameters(), *model.judge_b.parameters()], 2e-4, (0.5, 0.999))

    def judged(judge: Callable[..., Any], images: Tensor, label: float) -> Tensor:
        output = judge(images).float()
        return (0.5 if setting.alike else 1.0) * F.mse_loss(output, torch.full_like(output, label))

    def step() -> dict[str, float]:
        setting.begin()
        with frozen(model.judge_a), frozen(model.judge_b):
            optimizer_g.zero_grad()
            with setting.autocast():
                fake_a, fake_b = b2a(b), a2b(a)
                behind, same = (b2a(fake_b), a2b(fake_a)), (b2a(a), a2b(b))
                loss_g = judged(judge_a, fake_a, 1.0) + judged(judge_b, fake_b, 1.0)
            cycle, identity = (F.l1_loss(x.float(), a) + F.l1_loss(y.float(), b) for x, y in (behind, same))
            (loss_g + 10 * cycle + 5 * identity).backward()
            optimizer_g.step()
        optimizer_d.zero_grad()
        losses_d = []
        for judge, real, fake in ((judge_a, a, fake_a), (judge_b, b, fake_b)):
            with setting.autocast():
                losses_d.append(0.5 * (judged(judge, real, 1.0) + judged(judge, fake.detach(), 0.0)))
            losses_d[-1].backward()
        optimizer_d.step()
        values = {"loss_g": loss_g, "cycle": cycle, "identity": identity, "loss_d": torch.stack(losses_d).sum()}
        return {name: value.item() for name, value in values.items()}

    return step


def _one_loss(
    model: Any, setting: Setting, losses: Callable[..., tuple[Tensor, ...]], images: Tensor,
    *, draw: Callable[[], tuple[Tensor, ...]] = tuple, after: Callable[..., Any] | None = None, lr: float = 1e-3,
) -> Step:  # fmt: skip
    """Go down the first of what ``losses`` returns of images and what is drawn; ``after`` gets the rest."""
    computed, optimizer = setting.runs(losses), setting.adam(model.parameters(), lr, (0.9, 0.999))
    images = setting.laid_out(images) if images.dim() == 4 else images

    def step() -> dict[str, float]:
        setting.begin()
        optimizer.zero_grad()
        drawn = draw()
        with setting.autocast():
            loss, *rest = computed(images, *drawn)
        loss.backward()
        optimizer.step()
        if after is not None:
            after(*rest)
        return {"loss": loss.item()}

    return step


def vae(model: Any, setting: Setting, images: Tensor) -> Step:
    """github.com/pytorch/examples, vae/main.py, with the model's likelihood.

    Noise is drawn before what is compiled, so that all draw the same.
    """
    model, shape = setting.plain(model), (len(images), model.z_dim)

    def draw() -> tuple[Tensor]:
        if not setting.alike:
            return (torch.randn(shape, device=setting.device),)
        standard = torch.zeros(shape, device=setting.device)
        return (reparameterize_kl_reference(standard, standard)[0],)

    def losses(images: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        mu, logvar = model.encode(images)
        std = torch.exp(0.5 * logvar)
        decoded = model.decode(mu + noise * std)
        kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        return (kl / len(images) - model.log_likelihood(images, decoded.float()).mean(),)

    return _one_loss(model, setting, losses, images, draw=draw)


def vqvae(model: Any, setting: Setting, images: Tensor) -> Step:
    """Of van den Oord et al. 2017, arXiv:1711.00937: one loss, then the moving averages of the codes."""
    model = setting.plain(model)

    def losses(images: Tensor) -> tuple[Tensor, ...]:
        output = model(images)
        error = F.mse_loss(output.reconstruction.float(), images)
        return error + 0.25 * output.commitment, output.vectors.detach(), output.indices

    def after(vectors: Tensor, indices: Tensor) -> None:
        model.codebook.update(model.codebook.tally(vectors, indices))

    return _one_loss(model, setting, losses, images, after=after)


def frames(model: Any, setting: Setting, images: Tensor) -> Step:
    """The cross-entropy of each next frame, as of Shi et al. 2015, arXiv:1506.04214."""
    model = setting.plain(model)

    def losses(images: Tensor) -> tuple[Tensor, ...]:
        decoded = model(images).decoded.float()
        wanted = (images[:, 1:] + 1) / 2
        return (
            F.binary_cross_entropy_with_logits(decoded, wanted, reduction="sum") / decoded[:, :, 0, 0, 0].numel(),
        )

    return _one_loss(model, setting, losses, images, lr=3e-3)
