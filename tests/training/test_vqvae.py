import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trainers import batch
from two_processes import run_in_two_and_in_one

import genimg_fast as gf
from genimg_fast.training import NonFiniteLossError, Recipe, RunFolder, VQVAETrainer, fit

SIZES: dict[str, Any] = {"c_dim": 1, "image_size": 16, "channels": 8, "num_codes": 16, "code_dim": 4}


def make(
    recipe: Recipe | None = None,
    sizes: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> VQVAETrainer:
    torch.manual_seed(0)
    return VQVAETrainer(gf.models.VQVAE(**SIZES | (sizes or {})).to(dtype), recipe=recipe, **options)


def buffers(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.codebook.named_buffers()}


def test_step_equals_the_textbook() -> None:
    trainer = make(commitment=0.5, restart=0.0)
    model = copy.deepcopy(trainer.model)
    images, _ = batch()
    values = trainer.step(images)

    output = model(images)
    error = (output.reconstruction - images).square().mean()
    (error + 0.5 * output.commitment).backward()
    torch.optim.Adam(model.parameters(), lr=1e-3).step()
    model.codebook.update(model.codebook.tally(output.vectors, output.indices))
    torch.testing.assert_close(trainer.model.state_dict(), model.state_dict())
    shares = output.indices.flatten().bincount(minlength=16) / output.indices.numel()
    assert values["loss"].item() == pytest.approx((error + 0.5 * output.commitment).item(), rel=1e-5)
    assert values["reconstruction"].item() == pytest.approx(error.item(), rel=1e-5)
    assert values["commitment"].item() == pytest.approx(output.commitment.item(), rel=1e-5)
    assert values["perplexity"].item() == pytest.approx(math.exp(torch.special.entr(shares).sum()), rel=1e-5)
    assert values["codes_used"] == (shares > 0).sum()


def test_it_learns_each_image_with_all_of_its_codes(digits: gf.data.ImageDataset, device: str) -> None:
    data = gf.data.ImageDataset(digits.images[:16]).to(device)
    torch.manual_seed(0)
    trainer = VQVAETrainer(gf.models.VQVAE(**SIZES).to(device), lr=3e-3)
    history = fit(trainer, data, steps=120, batch_size=16, log_every=10)
    images, _ = data[:]
    assert history[-1]["reconstruction"] < 0.2 * (images - images.mean(0)).square().mean()
    assert history[-1]["perplexity"] > 8
    pictures = trainer.pictures(images[:5], torch.arange(5))
    assert pictures["reconstructions"].images["output"].shape == (5, 1, 16, 16)


def test_without_restarts_codes_that_are_far_away_are_never_used(digits: gf.data.ImageDataset) -> None:
    used = []
    for restart in (0.0, 0.1):
        trainer = make(restart=restart)
        trainer.model.codebook.codes[2:] += 100
        used.append(fit(trainer, digits, steps=10, batch_size=8, log_every=1)[-1]["codes_used"])
    assert used[0] <= 2
    assert used[1] > 8


def test_the_first_step_puts_codes_where_vectors_are() -> None:
    trainer = make()
    images, _ = batch()
    vectors = trainer.model(images).vectors.movedim(1, -1).reshape(-1, 4)
    before, random = buffers(trainer.model), torch.get_rng_state()
    trainer.step(images)
    assert torch.equal(torch.get_rng_state(), random)  # they are drawn with numbers of the trainer's own
    codes = trainer.model.codebook.codes
    at_vectors = (codes.unsqueeze(1) == vectors).all(2).any(1)
    assert at_vectors.sum() >= 8
    assert not (codes == before["codes"]).all(1).any()  # the others are means
    draws = []
    for seed in (0, 0, 1):
        trainer = make(seed=seed)
        trainer.step(images)
        draws.append(trainer.model.codebook.codes)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(("num_codes", "n"), [(1, 1), (200, 1), (16, 2)])
def test_more_codes_than_vectors_and_one_of_either(num_codes: int, n: int) -> None:
    trainer = make(sizes={"num_codes": num_codes})
    for _ in range(3):
        values = trainer.step(batch(n)[0])
    assert all(value.isfinite() for value in values.values())
    assert 1 <= values["codes_used"] <= min(num_codes, n * 16)
    assert all(buffer.isfinite().all() for buffer in trainer.model.codebook.buffers())


def test_parts_equal_the_whole_batch() -> None:
    """No image meets another in the networks; the codebook takes one step for all, with the same draws."""
    states = []
    for parts in (1, 4):
        trainer = make(Recipe(accumulate=parts), dtype=torch.float64)
        values = [trainer.step(batch()[0].double()) for _ in range(3)]
        states.append((trainer.model.state_dict(), values))
    torch.testing.assert_close(*states, rtol=1e-6, atol=1e-9)


def test_averages_of_codes_go_with_a_code_that_moves() -> None:
    trainer = make(Recipe(ema=0.9), {"decay": 0.5})
    averaged, codebook = trainer.sampler.codebook, trainer.model.codebook
    moves, update = [], codebook.update
    codebook.update = lambda *args, **options: moves.append(update(*args, **options)) or moves[-1]
    images = batch(2)[0]
    for step in range(6):
        before = {name: value.clone() for name, value in averaged.named_buffers()}
        trainer.step(images)
        share = 1 - min(0.9, (1 + step) / (10 + step)) if step else 1
        for name, current in codebook.named_buffers():
            mean = torch.lerp(before[name], current, share)
            expected = torch.where(moves[-1].view(-1, *(1,) * (current.ndim - 1)), current, mean)
            torch.testing.assert_close(averaged.get_buffer(name), expected)
    assert sum(int(moved.sum()) for moved in moves[1:]) > 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_batch_with_no_numbers_does_not_reach_the_codebook(bad: float) -> None:
    """Of the weights nobody can say that; where the loss is scaled, its step is left out, too."""
    trainer = make(Recipe(precision="fp16", ema=0.0))
    images, _ = batch()
    trainer.step(images)
    before = copy.deepcopy(trainer.model.state_dict())
    broken = images.clone()
    broken[3, 0, 5, 5] = bad
    with pytest.MonkeyPatch().context() as patch:  # images are looked at, and numbers that are infinite refused
        patch.setattr("genimg_fast.models.vqvae.check_images", lambda *_: None)
        values = trainer.step(broken)
    assert not values["loss"].isfinite()
    torch.testing.assert_close(trainer.model.state_dict(), before, rtol=0, atol=0)
    assert trainer.step(images)["loss"].isfinite()

    trainer = make()
    before = buffers(trainer.model)
    trainer.step(images * torch.nan)
    torch.testing.assert_close(buffers(trainer.model), before, rtol=0, atol=0)
    with pytest.raises(NonFiniteLossError, match="loss is nan at step 2"):
        fit(trainer, images, steps=3, batch_size=8, log_every=1)


def test_evaluation_changes_nothing(digits: gf.data.ImageDataset) -> None:
    trainer = make()
    trainer.step(*digits[:8])
    states = [copy.deepcopy(model.state_dict()) for model in (trainer.model, trainer.sampler)]
    values = trainer.evaluate(*digits[:20], generator=torch.Generator())
    assert values.keys() == {"loss", "reconstruction", "commitment", "perplexity"}
    images = digits[:20][0]
    error = (trainer.sampler.reconstruct(images) - images).square().mean()
    torch.testing.assert_close(values["reconstruction"], error)
    for model, before in zip((trainer.model, trainer.sampler), states, strict=True):
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("recipe", [Recipe(precision="bf16", channels_last=True), Recipe(compile=True)])
def test_other_recipes_train_alike(recipe: Recipe) -> None:
    images, _ = batch()
    plain, other = make(), make(recipe)
    for _ in range(2):
        expected, found = plain.step(images), other.step(images)
    tolerance = 0.05 if recipe.precision == "bf16" else 1e-4  # of eight bits a digit
    for name in ("loss", "reconstruction"):
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=1e-5)
    assert all(buffer.dtype == torch.float32 for buffer in other.model.codebook.buffers())


def test_a_resumed_run_restarts_the_same_codes(digits: gf.data.ImageDataset, tmp_path: Path) -> None:
    """A codebook that moves in every step, on small batches."""
    options: dict[str, Any] = {"batch_size": 2, "log_every": 1}
    sizes = {"num_codes": 60, "decay": 0.5}
    whole = make(sizes=sizes)
    expected = fit(whole, digits, steps=8, **options)
    run = RunFolder.create(tmp_path, "vqvae", {})
    fit(make(sizes=sizes), digits, steps=5, run=run, **options)
    torch.manual_seed(99)
    resumed = VQVAETrainer(gf.models.VQVAE(**SIZES | sizes))
    history = fit(resumed, digits, steps=8, run=run, resume=True, **options)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert [row["perplexity"] for row in history] == [row["perplexity"] for row in expected]


IN_PROCESSES = """
    import copy, sys, torch, genimg_fast as gf
    from genimg_fast.training import Recipe, VQVAETrainer, fit
    from genimg_fast.training.processes import gather_objects, process_group, rank, world_size

    with process_group(torch.device("cpu")):
        torch.manual_seed(0)
        model = gf.models.VQVAE(1, 16, 4, num_codes=40, code_dim=3, decay=0.5).double()
        trainer = VQVAETrainer(model, recipe=Recipe(accumulate=2))
        step = trainer.step
        trainer.step = lambda images, labels: step(images.double(), labels)
        data = gf.data.load_dataset("digits", image_size=16)
        history = fit(trainer, data, steps=4, batch_size=8 // world_size(), log_every=1)
        rows = [{k: row[k] for k in ("loss", "perplexity", "codes_used")} for row in history]
        states = gather_objects({k: v.tolist() for k, v in model.codebook.state_dict().items()})
        assert all(state == states[0] for state in states)
        if rank() == 0:
            torch.save((model.state_dict(), rows), sys.argv[1])
"""


def test_two_processes_equal_one_with_the_whole_batch(tmp_path: Path) -> None:
    """And have the same codebook, to the last bit."""
    two, one = run_in_two_and_in_one(IN_PROCESSES, tmp_path)
    # Losses are rounded to float32 where they are logged.
    torch.testing.assert_close(two, one, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"commitment": -1.0}, r"commitment must be at least 0, got -1\.0"),
        ({"restart": 1.0}, r"restart must lie in \[0, 1\), got 1\.0"),
        ({"restart": math.nan}, r"restart must lie in \[0, 1\), got nan"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
