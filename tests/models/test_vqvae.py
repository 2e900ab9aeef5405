import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

import genimg_fast as gf
from genimg_fast.models import VQVAE, Codebook, vqvae
from genimg_fast.models.vqvae import Tally

SIZES: dict[str, Any] = {"c_dim": 2, "image_size": 16, "channels": 8, "num_codes": 8, "code_dim": 3}


def batch(n: int = 6, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, 2, 16, 16, device=device, dtype=dtype) * 2 - 1


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 6])
def test_shapes_and_types(n: int, dtype: torch.dtype, layout: torch.memory_format, device: str) -> None:
    model = VQVAE(**SIZES).to(device, dtype).to(memory_format=layout)
    images = batch(n, device, dtype).contiguous(memory_format=layout)
    output = model(images)
    assert output.reconstruction.shape == images.shape
    assert output.vectors.shape == (n, 3, 4, 4)
    assert output.indices.shape == (n, 4, 4)
    assert output.indices.dtype == torch.int64
    assert {output.reconstruction.dtype, output.vectors.dtype, output.commitment.dtype} == {dtype}
    assert torch.equal(model.encode(images), output.indices)
    # Straight through: the decoder sees the codes themselves.
    torch.testing.assert_close(model.decode(output.indices), output.reconstruction)
    assert torch.equal(model.reconstruct(images), model.eval().decode(output.indices))


@pytest.mark.parametrize(("n_halvings", "grid"), [(1, 24), (2, 12), (3, 6), (4, 3)])
def test_the_grid_follows_the_halvings(n_halvings: int, grid: int) -> None:
    model = VQVAE(1, 48, 4, n_halvings)
    assert model.grid == grid
    assert model.encode(torch.zeros(2, 1, 48, 48)).shape == (2, grid, grid)
    assert model.reconstruct(torch.zeros(2, 1, 48, 48)).shape == (2, 1, 48, 48)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_nearest_codes_are_those_of_all_distances(
    dtype: torch.dtype, offset: float, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces, and where vectors and codes are far from the origin."""
    monkeypatch.setattr(vqvae, "_MOST_PAIRS", 7 * 50)
    codebook = Codebook(50, 5).to(device, dtype)
    codebook.codes += offset
    vectors = (torch.randn(4, 5, 6, 7, device=device, dtype=dtype) + offset).requires_grad_()
    distances = torch.cdist(vectors.movedim(1, -1).reshape(-1, 5).double(), codebook.codes.double())
    found = codebook(vectors)
    # Not farther than the nearest one, but for rounding.
    chosen = distances.gather(1, found.view(-1, 1)).squeeze(1)
    torch.testing.assert_close(chosen, distances.min(1).values, rtol=1e-4, atol=0)
    assert (found.flatten() == distances.argmin(1)).double().mean() > 0.99
    torch.testing.assert_close(codebook.look_up(found).movedim(1, -1), codebook.codes[found], rtol=0, atol=0)
    assert not codebook.look_up(found).requires_grad


def test_memory_is_bounded() -> None:
    """A quarter of a million vectors and a thousand codes: all distances would take a gigabyte."""
    codebook = Codebook(1024, 2)
    vectors = torch.randn(4, 2, 256, 256)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        indices = codebook(vectors)
    allocated = [event.cpu_memory_usage for event in profile.events()]
    assert indices.shape == (4, 256, 256)
    assert max(allocated) < 40 * 2**20


def test_of_equal_codes_the_first_is_chosen() -> None:
    codebook = Codebook(4, 3)
    codebook.codes.copy_(torch.ones(4, 3))
    assert not codebook(torch.randn(2, 3, 4, 4)).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_distances_are_in_float32_under_autocast(dtype: torch.dtype, device: str) -> None:
    codebook = Codebook(64, 8).to(device)
    vectors = torch.randn(4, 8, 8, 8, device=device)
    indices = codebook(vectors)
    tally = codebook.tally(vectors, indices)
    with torch.autocast(device, dtype=dtype):
        assert torch.equal(codebook(vectors), indices)
        for ours, expected in zip(codebook.tally(vectors, indices), tally, strict=True):
            assert torch.equal(ours, expected)
        output = VQVAE(**SIZES).to(device)(batch(device=device))
    assert output.vectors.dtype == output.commitment.dtype == torch.float32


def test_gradients_go_straight_through() -> None:
    model = VQVAE(**SIZES).double()
    images = batch(dtype=torch.float64)
    vectors = model.encoder(images)
    codes = model.codebook.look_up(model.codebook(vectors))
    leaf = codes.detach().requires_grad_()
    (through,) = torch.autograd.grad((model.decoder(leaf).tanh() - images).square().mean(), leaf)
    (pull,) = torch.autograd.grad(mse_loss(vectors, codes), vectors, retain_graph=True)
    expected = torch.autograd.grad(vectors, list(model.encoder.parameters()), through + 0.25 * pull)

    output = model(images)
    loss = (output.reconstruction - images).square().mean() + 0.25 * output.commitment
    found = torch.autograd.grad(loss, list(model.encoder.parameters()))
    torch.testing.assert_close(found, expected)
    assert not any(buffer.requires_grad for buffer in model.codebook.buffers())


def test_moving_averages_are_those_of_the_paper() -> None:
    """Appendix A.1: of the counts and sums of the vectors that chose each code; the code is their quotient."""
    codebook = Codebook(5, 3, decay=0.9).double()
    counts, sums, codes = torch.zeros(5).double(), torch.zeros(5, 3).double(), codebook.codes.clone()
    for _ in range(4):
        vectors = torch.randn(2, 3, 2, 2).double()
        indices = codebook(vectors)
        flat = vectors.movedim(1, -1).reshape(-1, 3)
        for code in range(5):
            chose = flat[indices.flatten() == code]
            counts[code] = 0.9 * counts[code] + 0.1 * len(chose)
            sums[code] = 0.9 * sums[code] + 0.1 * chose.sum(0)
            if len(chose):
                codes[code] = sums[code] / counts[code]
        assert not codebook.update(codebook.tally(vectors, indices)).any()
        for ours, expected in ((codebook.counts, counts), (codebook.sums, sums), (codebook.codes, codes)):
            torch.testing.assert_close(ours, expected)


def test_tallies_add_up_and_are_the_same_every_time(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codebook = Codebook(7, 4).to(device)
    vectors = torch.randn(6, 4, 5, 5, device=device)
    indices = codebook(vectors)
    whole = codebook.tally(vectors, indices)
    assert all(torch.equal(*pair) for pair in zip(codebook.tally(vectors, indices), whole, strict=True))
    monkeypatch.setattr(vqvae, "_MOST_PAIRS", 100)  # in pieces
    parts = [codebook.tally(vectors[part], indices[part]) for part in (slice(0, 2), slice(2, 6))]
    for ours, expected in zip((sum(each) for each in zip(*parts, strict=True)), whole, strict=True):
        torch.testing.assert_close(ours, expected)
    assert torch.equal(whole.counts, indices.flatten().bincount(minlength=7).float())


def test_dead_codes_are_put_where_vectors_are() -> None:
    codebook = Codebook(4, 2, decay=0.5)
    before, spare = codebook.codes.clone(), torch.arange(8.0).view(4, 2)
    tally = Tally(torch.tensor([10.0, 6.0, 0.0, 0.2]), torch.ones(4, 2))
    moved = codebook.update(tally, spare, restart=0.1)  # of a mean of 4.05
    assert moved.tolist() == [False, False, True, True]
    assert torch.equal(codebook.codes[2:], spare[2:])
    torch.testing.assert_close(codebook.codes[:2], torch.tensor([[0.1, 0.1], [1 / 6, 1 / 6]]))
    # They count as codes of average use, and are given time.
    torch.testing.assert_close(codebook.counts[2:], torch.full((2,), 4.05 / 2))
    torch.testing.assert_close(codebook.sums[2:], spare[2:] * 4.05 / 2)
    # 2.03, which halves with every step, against a tenth of a mean that rises towards 4.05.
    idle = [bool(codebook.update(tally, spare + 50)[2]) for _ in range(4)]
    assert idle == [False, False, True, False]

    never = Codebook(4, 2)
    assert not never.update(tally, spare, restart=0.0).any()
    assert not never.update(tally).any()
    assert not torch.equal(never.codes[0], before[0])


def test_a_code_that_is_never_chosen_again_stays_where_it_is() -> None:
    codebook = Codebook(2, 1, decay=0.5)
    codebook.update(Tally(torch.tensor([1.0, 1.0]), torch.tensor([[3.0], [5.0]])))
    for _ in range(400):  # its count vanishes, in float32
        codebook.update(Tally(torch.tensor([1.0, 0.0]), torch.tensor([[3.0], [0.0]])))
    assert codebook.counts[1] == 0
    assert codebook.codes.flatten().tolist() == [3, 5]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_vectors_that_are_no_numbers_do_not_reach_the_codebook(bad: float) -> None:
    codebook = Codebook(4, 2)
    vectors = torch.randn(2, 2, 3, 3)
    codebook.update(codebook.tally(vectors, codebook(vectors)))
    before = state(codebook)
    vectors[1, 0, 2, 2] = bad
    indices = codebook(vectors)
    assert indices.min() >= 0
    assert indices.max() < 4
    assert not codebook.update(codebook.tally(vectors, indices), torch.full((4, 2), bad), restart=0.9).any()
    torch.testing.assert_close(state(codebook), before, rtol=0, atol=0)


def test_one_code_and_one_image() -> None:
    model = VQVAE(**SIZES | {"num_codes": 1})
    images = batch(1)
    output = model(images)
    assert not output.indices.any()
    model.codebook.update(model.codebook.tally(output.vectors, output.indices))
    torch.testing.assert_close(model.codebook.codes[0], output.vectors.mean((0, 2, 3)))
    assert torch.equal(model.reconstruct(images), model.reconstruct(images.flip(0)))


@pytest.mark.parametrize("training", [True, False])
def test_using_a_model_leaves_it_as_it_was(training: bool, device: str) -> None:
    model = VQVAE(**SIZES).to(device).train(training)
    model.decoder[1].eval()
    before, modes = state(model), [module.training for module in model.modules()]
    images = batch(device=device)
    model(images)
    reconstructions = model.reconstruct(images)
    torch.testing.assert_close(model.reconstruct(images[:2]), reconstructions[:2])
    assert not reconstructions.requires_grad
    assert [module.training for module in model.modules()] == modes
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)


def test_the_whole_model_compiles() -> None:
    model = VQVAE(**SIZES)
    images = batch()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(images)
    torch.testing.assert_close(compiled, model(images))


def test_a_copy_has_a_codebook_of_its_own() -> None:
    model = VQVAE(**SIZES)
    other = copy.deepcopy(model)
    output = other(batch())
    other.codebook.update(other.codebook.tally(output.vectors, output.indices))
    assert not torch.equal(other.codebook.codes, model.codebook.codes)
    assert {key for key in model.state_dict() if key.startswith("codebook.")} == {
        "codebook.codes", "codebook.counts", "codebook.sums",
    }  # fmt: skip


def test_bad_use() -> None:
    model = VQVAE(**SIZES)
    for images in (torch.zeros(2, 3, 16, 16), torch.zeros(2, 2, 12, 12), torch.zeros(2, 16, 16)):
        for call in (model, model.encode, model.reconstruct):
            with pytest.raises(ValueError, match=r"expected images of shape \(batch, 2, 16, 16\), got \("):
                call(images)
    for indices in (torch.zeros(2, 4, 5).long(), torch.zeros(2, 4, 4), torch.zeros(4, 4).long()):
        with pytest.raises(ValueError, match=r"indices must be int64 of shape \(batch, 4, 4\), got torch\."):
            model.decode(indices)
    for number in (-1, 8):
        with pytest.raises(ValueError, match=r"indices must lie in 0\.\.7, got "):
            model.decode(torch.full((2, 4, 4), number))
    for vectors in (torch.zeros(2, 4, 4, 4), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match=r"vectors must be of shape \(batch, 3, height, width\), got \(2, "):
            model.codebook(vectors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 18}, "image_size must be a multiple of 4, for 2 halvings, got 18"),
        ({"num_codes": 0}, "num_codes must be at least 1, got 0"),
        ({"code_dim": 0}, "code_dim must be at least 1, got 0"),
        ({"n_halvings": 0}, "n_halvings must be at least 1, got 0"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"decay": 1.0}, r"decay must lie in \[0, 1\), got 1\.0"),
        ({"decay": float("nan")}, r"decay must lie in \[0, 1\), got nan"),
    ],
)
def test_bad_sizes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQVAE(**SIZES | options)


def test_group_norms_have_more_than_a_channel_or_two_in_a_group() -> None:
    """Else nothing would be left of a small map."""
    for channels, groups in ((3, 1), (4, 1), (8, 2), (12, 1), (64, 16), (128, 32), (256, 32), (192, 16)):
        norms = [m for m in VQVAE(channels=channels).modules() if isinstance(m, gf.nn.GroupNormAct)]
        assert {norm.num_groups for norm in norms} == {groups}
