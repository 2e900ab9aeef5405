import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from two_processes import run_in_two_and_in_one

import genimg_fast as gf
from genimg_fast.training import CycleGANTrainer, Recipe


def model_of(**options: Any) -> gf.models.CycleGAN:
    torch.manual_seed(0)
    return gf.models.CycleGAN(1, channels=4, image_size=16, n_residual=1, **options)


def batch(step: int = 0, n: int = 4) -> Tensor:
    return torch.rand(n, 1, 16, 32, generator=torch.Generator().manual_seed(step)) * 2 - 1


def textbook_step(model: Any, optimizers: Any, images: Tensor, identity: float) -> dict[str, Tensor]:
    a, b = images.chunk(2, dim=3)
    fake_a, fake_b = model.b2a(b), model.a2b(a)
    loss_g = sum(
        0.5 * (judge(x) - 1).square().mean() for judge, x in ((model.judge_a, fake_a), (model.judge_b, fake_b))
    )
    cycle = (model.b2a(fake_b) - a).abs().mean() + (model.a2b(fake_a) - b).abs().mean()
    same = (model.b2a(a) - a).abs().mean() + (model.a2b(b) - b).abs().mean()
    model.zero_grad()
    (loss_g + 10 * cycle + identity * same).backward()
    optimizers[0].step()
    model.zero_grad()
    pairs = ((model.judge_a, a, fake_a.detach()), (model.judge_b, b, fake_b.detach()))
    loss_d = sum(
        0.5 * (0.5 * (d(real) - 1).square().mean() + 0.5 * d(fake).square().mean()) for d, real, fake in pairs
    )
    loss_d.backward()
    optimizers[1].step()
    values = {"loss_d": loss_d, "loss_g": loss_g, "cycle": cycle} | ({"identity": same} if identity else {})
    return {name: value.detach() for name, value in values.items()}


@pytest.mark.parametrize("identity", [5.0, 0.0])
def test_steps_equal_the_textbook(identity: float) -> None:
    trainer, expected = CycleGANTrainer(model_of(), identity=identity, buffer_size=0), model_of()
    nets = [(expected.a2b, expected.b2a), (expected.judge_a, expected.judge_b)]
    optimizers = [
        torch.optim.Adam([p for m in two for p in m.parameters()], lr=2e-4, betas=(0.5, 0.999)) for two in nets
    ]
    for step in range(3):
        values = trainer.step(batch(step))
        torch.testing.assert_close(values, textbook_step(expected, optimizers, batch(step), identity))
    torch.testing.assert_close(trainer.model.state_dict(), expected.state_dict())


def test_pictures_and_errors_of_held_out_images() -> None:
    trainer = CycleGANTrainer(model_of(), recipe=Recipe(ema=0))
    a, b = batch().chunk(2, dim=3)
    panels = trainer.pictures(batch(), torch.zeros(4))["translations"].images
    assert list(panels) == ["a", "a2b", "a2b2a", "b", "b2a", "b2a2b"]
    assert torch.equal(panels["b"], b)
    assert torch.equal(panels["a2b"], trainer.model.translate(a))
    assert torch.equal(panels["b2a2b"], trainer.model.translate(trainer.model.translate(b, direction="b2a")))
    found = trainer.evaluate(batch(), generator=torch.Generator())
    cycles = (panels["a2b2a"] - a).abs().mean() + (panels["b2a2b"] - b).abs().mean()
    torch.testing.assert_close(found["cycle"], cycles)


def test_the_buffer_fills_and_then_swaps_half() -> None:
    trainer = CycleGANTrainer(model_of(), buffer_size=6, seed=3)
    seen: list[Tensor] = []
    swapped = 0
    for step in range(40):
        trainer.steps_done = step
        new = torch.full((4, 1, 16, 16), step + 1.0) + torch.arange(4).view(-1, 1, 1, 1) / 10
        shown = trainer._through_buffer("a", new, *trainer._draw(4))
        assert {float(x) for x in shown[:, 0, 0, 0]} <= {
            float(x) for each in [*seen, new] for x in each[:, 0, 0, 0]
        }
        changed = (shown != new).flatten(1).any(1)
        if step < 2:  # 6 images are not yet kept
            assert not changed.any()
        swapped += int(changed.sum())
        kept = trainer._kept["a"][:, 0, 0, 0]
        assert len(kept[kept > 0].unique()) == min(6, 4 * (step + 1))
        seen.append(new)
    assert 0.35 < swapped / (38 * 4) < 0.65


@pytest.mark.parametrize(("loss", "norm"), [("non_saturating", "batch"), ("relativistic", "instance")])
def test_every_parameter_learns_in_parts(loss: Any, norm: Any) -> None:
    trainer = CycleGANTrainer(model_of(norm=norm), loss=loss, recipe=Recipe(accumulate=2))
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.step(batch())
    same = [name for name, value in trainer.model.named_parameters() if torch.equal(value, before[name])]
    # The differences of logits, which is all that a relativistic loss sees, are without the last bias.
    assert len(same) == 2 * (loss == "relativistic")


def test_bad_arguments() -> None:
    trainer = CycleGANTrainer(model_of())
    with pytest.raises(ValueError, match=r"two kinds side by side, \(batch, 1, 16, 32\), got \(4, 1, 16, 16\)"):
        trainer.step(batch()[..., :16])
    for name in ("cycle", "identity", "buffer_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
            CycleGANTrainer(model_of(), **{name: -1})
    state = trainer.state_dict()
    with pytest.raises(ValueError, match="buffer of earlier translations has 50 images"):
        CycleGANTrainer(model_of(), buffer_size=4).load_state_dict(state)


IN_PROCESSES = """
    import sys, torch, genimg_fast as gf
    from genimg_fast.training import CycleGANTrainer, fit
    from genimg_fast.training.processes import process_group, rank, world_size

    with process_group(torch.device("cpu")):
        torch.manual_seed(0)
        model = gf.models.CycleGAN(1, channels=4, image_size=8, n_residual=1).double()
        trainer = CycleGANTrainer(model, buffer_size=8)
        trainer._kept = {kind: kept.double() for kind, kept in trainer._kept.items()}
        step = trainer.step
        trainer.step = lambda images, labels: step(images.double(), labels)
        digits = gf.data.load_dataset("digits", image_size=8)
        fit(trainer, gf.data.UnpairedImages(digits, digits), steps=6, batch_size=4 // world_size())
        if rank() == 0:
            torch.save((model.state_dict(), trainer.state_dict()["buffer"]), sys.argv[1])
"""


def test_two_processes_equal_one_with_the_whole_batch(tmp_path: Path) -> None:
    two, one = run_in_two_and_in_one(IN_PROCESSES, tmp_path)
    torch.testing.assert_close(two, one, rtol=1e-6, atol=1e-8)
