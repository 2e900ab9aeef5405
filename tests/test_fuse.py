"""gf.fuse on models that are no Sequentials: torch's numbers, and one operator where batch norm meets its end."""

import copy
import functools
import gc
import importlib
import io
import linecache
import pickle
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import genimg_fast as gf
from genimg_fast.nn import pending


class Net(nn.Module):
    """Two convolutions, two batch norms, an activation; each form of a forward pass uses some of them."""

    inplace = False

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.act = nn.LeakyReLU(0.2, inplace=self.inplace)
        self.nothing, self.drop = nn.Identity(), nn.Dropout(0.0)


class Attributes(Net):
    expected = ("leaky_relu", "leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        """A docstring
        of two lines."""
        x = self.act(self.bn1(self.conv1(x)))
        x = self.conv2(x)
        x = self.bn2(x)
        return self.act(x)


class Inplace(Attributes):
    inplace = True


class Functions(Net):
    expected = ("relu", "leaky_relu", "relu", "relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.leaky_relu(self.bn2(self.conv2(x)), 0.3)
        x = torch.relu(self.bn1(x))
        return self.bn2(x).relu()


class InPlaceMethod(Net):
    expected = ("relu",)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        y = x
        x.relu_()
        return y * 2 + x


class Between(Net):
    expected = ("leaky_relu",)

    def forward(self, x: Tensor) -> Tensor:
        x = self.nothing(self.bn1(self.conv1(x)))
        x = self.drop(x)
        return self.act(x)


class Residual(Net):
    expected = ("leaky_relu", "add + leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.act(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.act(out)


class Sums(Net):
    expected = ("add + relu", "add + relu", "add + relu", "add + leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)) + x)
        x = F.relu(x + self.bn2(self.conv2(x)))
        x = torch.add(self.bn1(x), x).relu()
        y = self.bn2(x)
        if self.conv1 is not None:
            y = y.add_(x)
        return self.act(y)


class BothSides(Net):
    expected = ("", "add + relu")

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x))
        x = self.bn2(x)
        out = out + x
        return torch.relu(out)


class UsedTwice(Net):
    expected = ("relu", "add + relu")

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x))
        z = F.relu(y)
        s = self.bn2(z) + x
        return F.relu(s) + y + s


class Looks(Net):
    expected = ("relu", "")

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        x = F.relu(x) if self.training or len(x) > 100 else x.relu()
        y = self.bn2(self.conv2(x))
        if y.mean() > 1e6:
            return y[:, :2]
        for part in (y, x):
            x = x + part.sin()
        return x


class Loops(Net):
    expected = ("leaky_relu", "leaky_relu", "leaky_relu")

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.bn1, self.act, self.conv1, self.bn2, self.act, self.bn1, self.act])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Ends(Net):
    """Batch norms at the end of blocks, whose activation is outside of them."""

    expected = ("relu", "add + relu")

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(self.conv1, nn.Sequential(self.bn1))
        self.own = End(self.conv2, self.bn2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.block(x))
        return F.relu(self.own(x) + x)


class Frees(Attributes):
    """Looks if the second convolution's input is the only tensor that is left of the first half."""

    made: Any = None
    kept = True

    def __init__(self) -> None:
        super().__init__()
        self.conv1.register_forward_hook(self.see)
        self.conv2.register_forward_pre_hook(self.look)

    def see(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        self.made = weakref.ref(output)

    def look(self, layer: nn.Module, inputs: Any) -> None:
        self.kept = self.made() is not None


@torch.no_grad()
def test_what_a_norm_has_read_is_freed_when_it_has_run() -> None:
    net = gf.fuse(Frees().eval())
    net(X)
    assert not net.kept


def test_small_inputs_run_as_they_are() -> None:
    net = gf.fuse(Attributes())
    with gf.backend("auto"):  # on the CPU, torch's own operators start faster
        assert torch.equal(net(X), gf.unfuse(copy.deepcopy(net))(X))
    assert "relu" in str(gf.fuse_report(net, X))


class End(nn.Module):
    def __init__(self, conv: nn.Module, bn: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn = conv, bn

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class EndsInSum(End):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y += self.bn(self.conv(x))
        return y


class Helpers(Attributes):
    expected = ("relu", "leaky_relu", "leaky_relu")

    def forward(self, x: Tensor, *, twice: bool = True) -> Tensor:
        return super().forward(self._begin(x, twice=twice))

    def _begin(self, x: Tensor, twice: bool) -> Tensor:
        apply = lambda value: value * 2 if twice else value  # noqa: E731
        return torch.cat([F.relu(self.bn1(p)) for p in (x,)] if twice else [apply(x)])


class Function(Net):
    expected = ("relu", "leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn1
        x = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, self.training, 0.2, eps=1e-3)
        x = F.relu(x)
        with torch.autograd.profiler.record_function("second"):
            y = self.act(self.bn2(self.conv2(x)))
        return y


class Cubes(nn.Module):
    expected = ("relu",)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 1), nn.BatchNorm3d(4, momentum=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x).unsqueeze(2)).relu().squeeze(2)


class Groups(nn.Module):
    """As diffusion models and their autoencoders, and as image translation."""

    expected = ("silu", "silu", "add + relu", "add + leaky_relu", "silu", "")

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1, self.act = nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.SiLU()
        self.instance = nn.InstanceNorm2d(4, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        h = self.act(h)
        x = x + F.silu(self.norm1(self.conv1(h)), inplace=True)
        x = F.relu(self.instance(self.conv1(x)) + x)
        h = self.instance(x)
        h += x
        x = F.leaky_relu(h, 0.2)
        x = F.silu(F.group_norm(x, 4))
        return torch.sigmoid(self.norm1(x))


class Silus(Net):
    """As EfficientNets: layers and functions, in place or not, with a sum before them or not."""

    expected = ("silu", "silu", "silu", "add + silu", "add + silu")

    def __init__(self) -> None:
        super().__init__()
        self.smooth, self.smooth_in_place = nn.SiLU(), nn.SiLU(inplace=True)
        self.block = nn.Sequential(self.conv1, self.bn1, self.smooth_in_place)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        x = F.silu(self.bn2(self.conv2(x)), inplace=True)
        bn = self.bn1
        y = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, self.training)
        x = self.smooth(y)
        x = F.silu(self.bn2(self.conv2(x)) + x)
        y = self.bn1(x)
        y += x
        return self.smooth_in_place(y)


class SiluResidual(Residual):
    expected = ("silu", "add + silu")

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.SiLU()


class SiluInPlace(Net):
    """What others have of a value changes with it."""

    expected = ("silu",)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        y = x
        x = F.silu(x, inplace=True)
        return y * 2 + x


class InPlaceSum(Net):
    """As ResNets with squeeze-and-excitation: the tensor that is added to is no norm's, and has one name."""

    expected = ("add + leaky_relu", "add + relu")

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(x)
        shortcut = self.bn1(self.conv1(x))
        y += shortcut
        x = self.act(y)
        z = self.conv2(x) * 2
        z += self.bn2(self.conv1(x))
        return torch.relu(z)


class ThreeNorms(Net):
    """As RepVGG: the first norm waits while other blocks are given its input."""

    expected = ("", "add", "add + relu", "add", "add + leaky_relu")

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.one, self.two = End(self.conv1, self.bn1), nn.Sequential(self.conv2, self.bn2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        z = self.one(x) + self.two(x)
        z = self.nothing(z)
        z += y
        z = torch.relu(z)
        z = z + self.norm(self.conv1(x)) + self.bn1(self.conv2(x))
        return self.act(z)


class NextBlocks(Net):
    """A sum ends a block, the activation begins the next one."""

    expected = ("add + relu",)

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = EndsInSum(self.conv1, self.bn1), nn.Sequential(nn.ReLU(inplace=True), self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.two(x)


FORMS = [
    Attributes, Inplace, Functions, InPlaceMethod, Between, Residual, Sums, BothSides, UsedTwice, Looks, Loops,
    Ends, Helpers, Function, Cubes, Groups, Silus, SiluResidual, SiluInPlace, InPlaceSum, ThreeNorms, NextBlocks,
]  # fmt: skip


@pytest.fixture
def ran() -> Iterator[list[str]]:
    """What ran with each batch norm, in order."""
    seen: list[str] = []

    def told(value: pending.Pending, activation: str, why: str) -> None:
        seen.append(
            " + ".join([*(["add"] if value.residual is not None else []), *([activation] * bool(activation))])
        )

    pending.listen(told)
    yield seen
    pending.stop_listening(told)


def train(model: nn.Module, x: Tensor, steps: int = 3) -> list[Tensor]:
    """Outputs of some steps of SGD, then of evaluation."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()
    outputs = []
    for _ in range(steps):
        optimizer.zero_grad()
        x = x.detach().clone().requires_grad_()
        output = model(x * 1)
        output.square().mean().backward()
        outputs += [output.detach(), x.grad]
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return [*outputs, model(x * 1)]


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_forward_pass(form: type[nn.Module], ran: list[str]) -> None:
    torch.manual_seed(1)
    plain = form().double()
    fused = gf.fuse(copy.deepcopy(plain))
    x = torch.randn(4, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(train(fused, x), train(plain, x), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), rtol=1e-11, atol=1e-12)
    assert tuple(ran[: len(form.expected)]) == form.expected
    assert len(ran) == 4 * len(form.expected)
    assert type(gf.unfuse(fused)) is form
    assert [type(m) for m in fused.modules()] == [type(m) for m in plain.modules()]
    assert [vars(m).keys() for m in fused.modules()] == [vars(m).keys() for m in plain.modules()]


def fused_block() -> nn.Module:
    return gf.fuse(Residual())


X = torch.randn(4, 4, 5, 5, generator=torch.Generator().manual_seed(0))


def test_copies_stay_fused_and_files_are_plain(ran: list[str]) -> None:
    model = fused_block()
    for twin in (copy.copy(model), copy.deepcopy(model)):
        ran.clear()
        twin(X)
        assert ran == list(Residual.expected)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (loaded, pickle.loads(pickle.dumps(model))):
        assert type(other) is Residual
        assert type(other.bn1) is nn.BatchNorm2d
        torch.testing.assert_close(other.state_dict(), model.state_dict())
    assert b"genimg_fast" not in file.getvalue()
    assert list(model.state_dict()) == list(Residual().state_dict())


@pytest.mark.parametrize("make", [lambda: nn.LSTM(3, 4), Attributes], ids=["LSTM", "Attributes"])
def test_unfuse_after_a_parametrization(make: Callable[[], Any]) -> None:
    plain = make()
    name = next(n for n, p in plain.named_parameters(recurse=False)) if type(plain) is nn.LSTM else "extra"
    if name == "extra":
        plain.extra = nn.Parameter(torch.ones(2, 2))
    fused = gf.fuse(copy.deepcopy(plain))
    nn.utils.parametrizations.spectral_norm(fused, name)
    assert type(gf.unfuse(fused)).__mro__[1] is type(plain)
    assert nn.utils.parametrize.is_parametrized(fused, name)
    nn.utils.parametrize.remove_parametrizations(fused, name)
    assert type(fused) is type(plain)


def test_hooks_see_what_they_always_saw(ran: list[str]) -> None:
    model, seen = fused_block(), []
    handle = model.bn2.register_forward_hook(lambda m, i, o: seen.append(o))
    output = model(X)
    assert ran == ["leaky_relu"]
    torch.testing.assert_close(seen[0], output.where(output > 0, output / 0.2))  # after the sum in place
    handle.remove()
    model(X)
    assert ran[1:] == list(Residual.expected)


@pytest.mark.parametrize("training", [True, False])
def test_torchs_tools(training: bool) -> None:
    plain = Attributes().train(training)
    fused = gf.fuse(copy.deepcopy(plain))
    expected = copy.deepcopy(plain)(X)
    tools = [
        torch.jit.script,
        torch.fx.symbolic_trace,
        functools.partial(torch.jit.trace, example_inputs=X, check_trace=False),
        lambda model: torch.export.export(model, (X,)).module() if not training else model,
    ]
    for tool in tools:
        result = tool(copy.deepcopy(fused))
        torch.testing.assert_close(result(X), expected)
        assert "genimg_fast::" not in str(getattr(result, "graph", ""))


@pytest.mark.parametrize("form", [Attributes, Residual, Sums, Ends, Function, UsedTwice, Silus])
def test_compiles_as_one_graph(form: type[nn.Module]) -> None:
    torch._dynamo.reset()
    fused = gf.fuse(form())
    expected, state = copy.deepcopy(fused)(X), copy.deepcopy(fused)
    state(X)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(str(graph.graph))
        return graph

    torch.testing.assert_close(torch.compile(fused, fullgraph=True, backend=backend)(X), expected)
    torch.testing.assert_close(fused.state_dict(), state.state_dict())
    assert graphs[0].count("batch_norm_act") >= len([e for e in form.expected if e])


@pytest.mark.parametrize("form", [Residual, Groups, Silus])
def test_a_compiled_model_trains_as_a_plain_one(form: type[nn.Module]) -> None:
    torch._dynamo.reset()
    plain = form().double()
    compiled = torch.compile(gf.fuse(copy.deepcopy(plain)), fullgraph=True, backend="aot_eager")
    x = X.double()
    torch.testing.assert_close(train(compiled, x), train(plain, x), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(compiled._orig_mod.state_dict(), plain.state_dict(), rtol=1e-11, atol=1e-12)


class Changes(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        z = self.bn1(y)
        y.mul_(2)
        return F.relu(z) + y


class ChangesSummand(Net):
    def forward(self, x: Tensor) -> Tensor:
        z = self.bn1(self.conv1(x))
        y = x * 1
        z = z + y
        self.act(y.mul_(2))
        return F.relu(z) + y


class ChangesView(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        part = y[:, :2]
        z = self.bn1(y)
        part = self.act(part.mul_(2))
        return F.relu(z)


class ChangesBound(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = x * 1
        out = self.bn1(self.conv1(x)) + r
        z = self.bn2(r)
        return r.relu_() + F.relu(out) + F.relu(z)


class HookOnALeaf(Net):
    """A hook changes what waits, before a layer that changes nothing by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2.register_forward_pre_hook(lambda layer, inputs: (inputs[0].mul_(2),))

    def forward(self, x: Tensor) -> Tensor:
        a = self.bn1(x)
        b = self.conv2(x)
        return torch.relu(a) + b


def test_a_hook_on_a_leaf_may_change_what_waits() -> None:
    plain = HookOnALeaf().requires_grad_(False)
    fused = gf.fuse(copy.deepcopy(plain))
    torch.testing.assert_close(fused(X.clone()), plain(X.clone()))


def test_classes_are_not_kept_alive() -> None:
    class Passing(Attributes):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    net = gf.fuse(Passing())
    net(X)
    gone = weakref.ref(Passing)
    del net, Passing
    gc.collect()
    assert gone() is None


def test_changes_in_place() -> None:
    for form in (Changes, ChangesSummand, ChangesView, ChangesBound, UsesBoth):
        plain = form().eval()
        fused = gf.fuse(copy.deepcopy(plain))
        for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            with mode():
                torch.testing.assert_close(fused(X), plain(X))
    model = gf.fuse(Changes())
    with pytest.raises(RuntimeError, match=r"modified by an inplace|changed in place"):  # torch's would raise, too
        model(X).sum().backward()


class Alias(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x)
        other = r
        r += self.bn1(self.conv1(x))
        return self.act(r) + other


class AliasInAList(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x)
        others = [r]
        r += self.bn1(self.conv1(x))
        return self.act(r) + others[0]


class AliasInAFunction(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x)
        double = functools.partial(torch.mul, r, 2)
        r += self.bn1(self.conv1(x))
        return self.act(r) + double()


class ViewOfATensor(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x)
        part = r[:, :2]
        r += self.bn1(self.conv1(x))
        r = self.act(r)
        return r[:, :2] + part


class IsAView(Net):
    def forward(self, x: Tensor) -> Tensor:
        whole = self.conv2(x)
        r = whole[:]
        r += self.bn1(self.conv1(x))
        return self.act(r) + whole


class ViewOfASum(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = self.bn2(self.conv2(x)) + x
        part = r[:, :2]
        r += self.bn1(self.conv1(x))
        r = self.act(r)
        return r[:, :2] + part


class Detached(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x)
        other = r.detach()
        r += self.bn1(self.conv1(x))
        return self.act(r) + other


class StorageOnly(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x)
        storage = r.untyped_storage()
        r += self.bn1(self.conv1(x))
        r = self.act(r)
        return r + torch.tensor([], dtype=r.dtype).set_(storage, 0, r.shape)


class Weakly(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x)
        other = weakref.ref(r)
        r += self.bn1(self.conv1(x))
        return self.act(r) + other()


class WithAnAttribute(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x)
        r.factor = 3
        r += self.bn1(self.conv1(x))
        y = self.act(r)
        return y * r.factor


class NormOfItself(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv1(x) * 1
        r += self.bn1(r)
        return self.act(r)


class OfAnotherType(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x).to(torch.bfloat16)
        r += self.bn1(self.conv1(x))
        r = self.act(r)
        s = self.conv2(x).double()
        s += self.bn2(self.conv1(x))
        return self.act(s) + r


class Broadcast(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x)
        r += self.bn1(self.conv1(x)[:1])
        return self.act(r)


class OfAnotherLayout(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x).to(memory_format=torch.channels_last)
        r += self.bn1(self.conv1(x))
        return r.relu()


class WithoutGradient(Net):
    """The sum changes values, and leaves the graph as it was."""

    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x)
        with torch.no_grad():
            r += self.bn1(self.conv1(x))
        r = self.act(r)
        s = self.conv1(r)
        mode = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        s += self.bn2(self.conv2(r))
        s = self.nothing(s)
        torch.set_grad_enabled(mode)
        return s


class Argument(Net):
    def forward(self, x: Tensor) -> Tensor:
        x += self.bn1(self.conv1(x))
        return self.act(x)


class ArgumentOfABlock(Net):
    def __init__(self) -> None:
        super().__init__()
        self.block = Argument()

    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x)
        return self.block(r) + r


class InPlaceOfAWaitingInput(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv1(x) * 1
        y = self.bn1(r)
        z = self.conv2(x)
        r += z
        s = self.conv2(x) * 1
        w = self.bn2(s)
        s = torch.relu_(s)
        return F.relu(y) + F.relu(w) + r + s


class InPlaceOfASummand(Net):
    """What is added to another norm has run; then it is changed, before the sum is looked at."""

    def forward(self, x: Tensor) -> Tensor:
        a, act = self.bn1(self.conv1(x)), nn.ReLU(inplace=True)
        b = self.bn2(self.conv2(x))
        a = a * 1
        a = self.bn1(a)
        s = a + b
        return act(b) + F.relu(s)


SOLE = [
    Alias, AliasInAList, AliasInAFunction, ViewOfATensor, IsAView, ViewOfASum, Detached, StorageOnly, Weakly,
    WithAnAttribute, NormOfItself, OfAnotherType, Broadcast, OfAnotherLayout, WithoutGradient, Argument,
    ArgumentOfABlock, InPlaceOfAWaitingInput, InPlaceOfASummand,
]  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", SOLE)
def test_sums_in_place_where_somebody_else_could_tell(form: type[nn.Module], training: bool) -> None:
    plain = form().train(training)
    fused = gf.fuse(copy.deepcopy(plain))
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            results = []
            for model in (plain, fused):
                x = X * 1
                output = model(x)
                results.append((output, x, model.state_dict()))
            torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
            assert results[1][0].stride() == results[0][0].stride()
            assert results[1][0].requires_grad == results[0][0].requires_grad
    gradients = []
    for model in (plain.double(), fused.double()):
        x = X.double().requires_grad_()
        try:
            model(x * 1).square().sum().backward()
            gradients.append([x.grad, *(p.grad for p in model.parameters())])
        except RuntimeError as error:
            gradients.append([str(error).split(":")[0]])
    if all(isinstance(g, Tensor) or g is None for g in gradients[0]):
        torch.testing.assert_close(gradients[1], gradients[0])
    else:  # what is needed for backward was changed
        assert isinstance(gradients[1][0], str)


class Leaf(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = torch.zeros_like(x, requires_grad=True)
        r += self.bn1(self.conv1(x))
        return self.act(r)


class SavedInput(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x)
        s = r.sin()
        r += self.bn1(self.conv1(x))
        r = self.act(r)
        return r + s


class SavedOutput(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x).sigmoid()
        r += self.bn1(self.conv1(x))
        return self.act(r)


class OfInference(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            r = x * 2
        r += self.bn1(self.conv1(x))
        return self.act(r)


class Smaller(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x)[:1]
        r += self.bn1(self.conv1(x))
        return self.act(r)


class Expanded(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = x[:1].detach().expand(4, 4, 5, 5)
        r += self.bn1(self.conv1(x))
        return self.act(r)


@pytest.mark.parametrize("form", [Leaf, SavedInput, SavedOutput, OfInference, Smaller, Expanded])
def test_sums_in_place_raise_what_torch_does(form: type[nn.Module]) -> None:
    plain, messages = form(), []
    for model in (plain, gf.fuse(copy.deepcopy(plain))):
        with pytest.raises(RuntimeError) as raised:
            model(X).sum().backward()
        messages.append(str(raised.value).split("[")[0])
    assert messages[1] == messages[0]


class Watched(Net):
    """What watches the gradient of what is added to in place."""

    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x)
        r.register_hook(self.seen.append)
        r += self.bn1(self.conv1(x))
        r = self.act(r)
        s = self.conv1(r)
        s.retain_grad()
        s += self.bn2(self.conv2(r))
        r = self.act(s)
        self.kept = s
        return r


def test_sums_in_place_of_what_is_watched() -> None:
    plain, results = Watched(), []
    for model in (plain, gf.fuse(copy.deepcopy(plain))):
        model.seen = []
        model(X).square().sum().backward()
        results.append((model.seen, model.kept.grad))
    torch.testing.assert_close(results[1], results[0])
    assert len(results[0][0]) == 1
    assert results[0][1] is not None


class OfAnArray(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = torch.from_numpy(self.array)
        r += self.bn1(self.conv1(x))
        return self.act(r)


def test_sums_in_place_in_the_memory_of_an_array() -> None:
    plain, arrays = OfAnArray().requires_grad_(False), []
    for model in (plain, gf.fuse(copy.deepcopy(plain))):
        model.array = X.numpy().copy()
        model(X)
        arrays.append(model.array)
    torch.testing.assert_close(torch.from_numpy(arrays[1]), torch.from_numpy(arrays[0]))
    assert (arrays[0] != X.numpy()).any()


@pytest.mark.parametrize("group", [False, True])
def test_sums_in_place_under_autocast(group: bool, ran: list[str]) -> None:
    plain = InPlaceSum()
    if group:
        plain.bn1, plain.bn2 = nn.GroupNorm(2, 4), nn.GroupNorm(2, 4)
    fused = gf.fuse(copy.deepcopy(plain))
    with torch.autocast("cpu", torch.bfloat16):
        expected, output = plain(X), fused(X)
    torch.testing.assert_close(output, expected, rtol=5e-2, atol=5e-2)
    assert ("add + relu" in ran) != group


class Blocks(Net):
    """A norm waits, and a block is given its input."""

    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.block = block(self.bn1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(x)
        z = self.block(x)
        return F.relu(y) + z


class Block(nn.Module):
    def __init__(self, outside: nn.Module) -> None:
        super().__init__()
        self.outside = (outside,)  # not its own
        self.conv, self.bn, self.act = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class MultipliesItsInput(Block):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return super().forward(x)


class AddsToItsInput(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        x += y
        return x


class AddsATensorToItsInput(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        x += y
        return self.bn(x).relu()


class SetsAnItem(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        x[:, 0] = 1
        return self.act(y) + x


class ActivatesItsInput(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x)
        return self.bn(self.conv(x))


class ActivatesAView(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(x[:, 1:], inplace=True)
        return self.bn(self.conv(x)) + y.mean()


class ActivatesByAFunction(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu_(x)
        return self.bn(self.conv(y))


class SequenceInPlace(Block):
    def __init__(self, outside: nn.Module) -> None:
        super().__init__(outside)
        self.all = nn.Sequential(nn.Identity(), nn.Sequential(self.act, self.conv), self.bn)

    def forward(self, x: Tensor) -> Tensor:
        return self.all(x)


class WithAHook(Block):
    def __init__(self, outside: nn.Module) -> None:
        super().__init__(outside)
        self.conv.register_forward_pre_hook(lambda layer, inputs: (inputs[0].mul_(2),))


class Deeper(Block):
    def __init__(self, outside: nn.Module) -> None:
        super().__init__(outside)
        self.below = MultipliesItsInput(outside)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        return self.below(x) + F.relu(y)


class CallsTheNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.outside[0](x * 2)
        return self.act(y) + super().forward(x)


class ReadsTheNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        mean = self.outside[0].running_mean.view(1, -1, 1, 1) * 1
        return super().forward(x) + mean


class ReturnsItsInput(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return x if self.conv is not None else self.act(y)


class Fails(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        if y.dim() == 4:
            raise OverflowError
        return y


BLOCKS = [
    Block, MultipliesItsInput, AddsToItsInput, AddsATensorToItsInput, SetsAnItem, ActivatesItsInput,
    ActivatesAView, ActivatesByAFunction, SequenceInPlace, WithAHook, Deeper, CallsTheNorm, ReadsTheNorm,
    ReturnsItsInput, Fails,
]  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_that_are_given_the_input_of_what_waits(
    block: type[nn.Module], training: bool, ran: list[str]
) -> None:
    plain = Blocks(block).requires_grad_(False).train(training)
    fused = gf.fuse(copy.deepcopy(plain))
    results: list[Any] = []
    for model in (plain, fused):
        x = X.clone()
        try:
            results.append((model(x), x))
        except OverflowError:
            results.append(x)
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())
    assert (ran == ["relu", "relu"]) == (block is Block)


class UsesBoth(Net):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv1(x) * 1
        y = self.bn1(x)
        out = y + r
        z = y.sin()
        r = self.act(r.mul_(2))
        return F.relu(out) + z + r


class Unused(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(x)
        z = self.bn2(x)
        if self.training:
            return x * 2
        return y + z


class Twice(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(x)
        z = self.bn1(x * 2)
        z = F.relu(z)
        return F.relu(y) + z


class TwiceWithin(nn.Module):
    """A block that ends in a batch norm, called again while that waits."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.sequential = End(nn.Identity(), nn.BatchNorm2d(4)), nn.Sequential(nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        y, z = x, x
        for block in (self.block, self.sequential):
            a = block(y)
            b = block(y * 2)
            b = F.relu(b)
            z = z + F.relu(a) + b
        return z


class CalledByOthers(Net):
    def __init__(self) -> None:
        super().__init__()
        self.inner = End(self.conv1, self.bn1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(x)
        y = y + self.inner(x * 3).relu()
        z = self.bn1.forward(x * 2)
        w = self.bn2(x)
        v = checkpoint(self.bn2, x * 2, use_reentrant=False)
        mean = self._mean()
        return F.relu(y) + z + F.relu(w) + v + mean

    def _mean(self) -> Tensor:
        return getattr(self.bn1, "running_mean").mean() * 1  # noqa: B009


class GradModes(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.bn1(x)
        z = self.bn2(x)
        with torch.no_grad():
            w = F.relu(z)
        try:
            v = self.bn1(x)
        finally:
            del x
        torch.set_grad_enabled(True)
        return F.relu(y) + w + F.relu(z) + F.relu(v)


class Reads(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(x)
        mean = self.bn1.running_mean.clone()
        return F.relu(y) + mean.view(1, -1, 1, 1)


@pytest.mark.parametrize("form", [Unused, Twice, TwiceWithin, CalledByOthers, GradModes, Reads])
def test_statistics_and_gradients_are_those_of_the_order_of_the_calls(form: type[nn.Module]) -> None:
    plain = form().double()
    fused = gf.fuse(copy.deepcopy(plain))
    for model in (plain, fused):
        x = torch.linspace(-1, 3, 4 * 4 * 9, dtype=torch.float64).view(4, 4, 3, 3).requires_grad_()
        model(x).square().sum().backward()
        model.gradient = x.grad
    torch.testing.assert_close(fused.gradient, plain.gradient)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())
    for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("form", [Residual, SiluResidual])
def test_autocast_and_second_derivatives(form: type[nn.Module]) -> None:
    plain = form()
    fused = gf.fuse(copy.deepcopy(plain))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fused(X), plain(X), rtol=2e-2, atol=2e-2)
    results = []
    for model in (plain.double(), fused.double()):
        x = X.double().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        slope.square().sum().backward()
        results.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(results[1], results[0])


class Checkpointed(Net):
    def forward(self, x: Tensor) -> Tensor:
        def part(value: Tensor) -> Tensor:
            value = self.bn1(self.conv1(value))
            return F.relu(value)

        x = checkpoint(part, x, use_reentrant=False)
        return checkpoint(self._rest, x, use_reentrant=False)

    def _rest(self, x: Tensor) -> Tensor:
        return self.act(self.bn2(x) + x)


def test_checkpointing_runs_fused(ran: list[str]) -> None:
    plain = Checkpointed()
    fused = gf.fuse(copy.deepcopy(plain))
    torch.testing.assert_close(train(fused, X), train(plain, X), rtol=1e-4, atol=1e-5)
    assert ran[:4] == ["relu", "add + leaky_relu"] * 2


class Frozen(nn.Module):
    """As torchvision's FrozenBatchNorm2d."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), FrozenBatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)) + x)


class FrozenBatchNorm2d(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.eps = 1e-5
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(features) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


def test_frozen_and_synchronised_batch_norms(ran: list[str]) -> None:
    plain = Frozen().double()
    fused = gf.fuse(copy.deepcopy(plain))
    torch.testing.assert_close(train(fused, X.double()), train(plain, X.double()))
    assert ran == ["add + relu"] * 4
    ran.clear()
    plain = nn.SyncBatchNorm.convert_sync_batchnorm(Attributes()).eval()
    fused = gf.fuse(copy.deepcopy(plain))
    torch.testing.assert_close(fused(X), plain(X))
    assert ran == list(Attributes.expected)


class Derived(nn.BatchNorm2d):
    pass


class OwnForward(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Shifted(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class OursShifted(gf.nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize("block", [Shifted, OursShifted])
@pytest.mark.parametrize("norm", [Derived, OwnForward])
def test_derived_layers(norm: type[nn.Module], block: type[nn.Module], ran: list[str]) -> None:
    plain = nn.Sequential(block(nn.Conv2d(4, 4, 1), norm(4), nn.ReLU()), norm(4), nn.ReLU())
    fused = gf.fuse(copy.deepcopy(plain))
    torch.testing.assert_close(train(fused, X), train(plain, X), rtol=1e-4, atol=1e-5)
    assert [type(m) for m in gf.unfuse(fused)[0]] == [type(m) for m in plain[0]]
    assert ("relu" in ran) == (norm is Derived)


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


class Decorated(Net):
    @decorated
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn1(x))


class AsksForClass(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(x)
        return F.relu(x) if type(self) is AsksForClass else x


class AsksSuper(Attributes):
    def forward(self, x: Tensor) -> Tensor:
        return super(self.__class__, self).forward(x)


class AsksWhenMade(nn.Sequential):
    """As torchvision's convolution, norm and activation, which its efficientnet and mobilenet are made of."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        if self.__class__ == nn.Sequential:
            raise TypeError


def test_classes_that_ask_for_themselves_when_they_are_made(ran: list[str]) -> None:
    plain = AsksWhenMade(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.SiLU(inplace=True))
    fused = gf.fuse(copy.deepcopy(plain))
    torch.testing.assert_close(fused(X), plain(X))
    assert ran == ["silu"]
    assert type(fused[:2]).__name__ == "AsksWhenMade"
    assert type(gf.unfuse(fused)) is AsksWhenMade


@pytest.mark.parametrize("form", [AsksForClass, AsksSuper])
def test_classes_that_ask_for_themselves_stay(form: type[nn.Module]) -> None:
    plain = form()
    fused = gf.fuse(copy.deepcopy(plain))
    assert type(fused) is form
    torch.testing.assert_close(fused(X), plain(X))
    assert "its class is asked for in forward" in gf.fuse_report(plain, X)[0].why


namespace: dict = {"Net": Net}
exec("class NoSource(Net):\n    def forward(self, x):\n        return self.act(self.bn1(x))\n", namespace)


def test_what_cannot_be_rewritten_is_left_and_said() -> None:
    for form, why in (
        (Decorated, "is wrapped in something"),
        (namespace["NoSource"], "its source is not at hand"),
    ):
        model = form()
        assert type(gf.fuse(model)) is form
        (row, _) = gf.fuse_report(model, X)
        assert (row.name, row.fused) == ("bn1", "")
        assert why in row.why
    for model in (torch.jit.script(Attributes()), torch.fx.symbolic_trace(Attributes())):
        torch.testing.assert_close(gf.fuse(model)(X), model(X))
    replaced = Attributes()
    replaced.forward = lambda x: x + 1
    assert torch.equal(gf.fuse(replaced)(X), X + 1)


SOURCE = """
import torch
class Edited(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bn1, self.act = torch.nn.BatchNorm2d(4), torch.nn.ReLU()
    def forward(self, x):
        return self.act(self.bn1(x)) * 2
"""


def test_a_file_that_was_edited_after_its_import_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "edited_model.py"
    file.write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("edited_model")
    plain = module.Edited()
    file.write_text(SOURCE.replace("* 2", "* 3"))
    linecache.checkcache()
    torch.testing.assert_close(gf.fuse(copy.deepcopy(plain))(X), plain(X))
    assert "its source is not what is running" in gf.fuse_report(module.Edited(), X)[0].why


class FailsBehind(Net):
    def forward(self, x: Tensor, *, fail: bool = False) -> Tensor:
        y = self.bn1(x)
        if fail:
            raise OverflowError("behind the norm")
        return self.act(y)


def test_an_error_behind_a_norm_leaves_what_torch_would() -> None:
    plain = FailsBehind()
    fused = gf.fuse(copy.deepcopy(plain))
    for model in (plain, fused):
        with pytest.raises(OverflowError, match="behind the norm"):
            model(X, fail=True)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())
    assert int(fused.bn1.num_batches_tracked) == 1
    torch.testing.assert_close(fused(X), plain(X))


class OwnCall(Net):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) + 1

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn1(x))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = OwnCall()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_layers_with_a_call_of_their_own() -> None:
    plain = Outer()
    torch.testing.assert_close(gf.fuse(copy.deepcopy(plain))(X), plain(X))


@pytest.mark.parametrize(
    "child", [torch.jit.script, torch.fx.symbolic_trace, torch.compile], ids=lambda f: f.__name__
)
def test_layers_of_other_kinds_within(child: Callable[[nn.Module], nn.Module]) -> None:
    plain = Outer()
    plain.inner = child(Attributes(), **({"backend": "eager"} if child is torch.compile else {}))
    plain.norm = nn.BatchNorm2d(4)
    fused = gf.fuse(plain)
    output = fused(X)
    torch.testing.assert_close(output, plain.inner(X))


def test_nothing_changes_where_nothing_matches() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    model = Plain()
    assert type(gf.fuse(model)) is Plain


def test_report() -> None:
    model = nn.Sequential(BothSides(), UsedTwice(), Looks())
    state = copy.deepcopy(model.state_dict())
    report = gf.fuse_report(model, X)
    assert [row.fused for row in report[:4]] == ["", "add + relu", "relu", "add + relu"]
    assert report[0].why == "is added to another batch norm's result"
    assert report[-1] == ("2.bn2", "", "goes to mean")
    assert str(report).splitlines()[0].split() == ["norm", "runs", "as", "one", "with"]
    assert str(report).endswith("4 of 6 norms run as one operator with what follows them")
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert type(model[0]) is BothSides
    model[0].bn1.register_forward_hook(lambda *_: None)
    left = next(row for row in gf.fuse_report(model, X) if row.name == "0.bn1")
    assert left == ("0.bn1", "", "it has hooks, or a forward of its own")


def test_wrong_inputs_raise_as_with_torch() -> None:
    plain = Attributes()
    fused = gf.fuse(copy.deepcopy(plain))
    for x in (torch.randn(4, 4, 5), torch.randn(2, 3, 5, 5), torch.randn(1, 4, 1, 1)):
        messages = []
        for model in (plain, fused):
            with pytest.raises((ValueError, RuntimeError)) as raised:
                model(x)
            messages.append(str(raised.value))
        assert messages[0] == messages[1]


def randomise(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            for values in (module.running_mean, module.running_var, module.weight, module.bias):
                if values is not None:
                    values.data.uniform_(0.5, 2)
    return model.eval()


class Foldable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn1 = nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)
        self.up, self.bn2 = nn.ConvTranspose2d(6, 4, 3, groups=2), gf.nn.BatchNormAct2d(4, activation="relu")
        self.linear, self.bn3 = nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False)
        self.smooth = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.SiLU(inplace=True))
        self.conv4, self.bn4 = nn.Conv2d(4, 4, 1), gf.nn.BatchNormAct2d(4, activation="silu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.up(F.relu(self.bn1(self.conv(x)))))
        x = self.bn4(self.conv4(self.smooth(x)))
        return self.bn3(self.linear(x.mean((2, 3))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_folding(dtype: torch.dtype) -> None:
    model = randomise(Foldable()).to(dtype)
    x = X.to(dtype)
    folded = gf.fold_batch_norm(model, x)
    assert [type(m) for m in (folded.bn1, folded.bn2, folded.bn3)] == [nn.Identity, nn.ReLU, nn.Identity]
    assert [type(m) for m in (folded.smooth[1], folded.bn4)] == [nn.Identity, nn.SiLU]
    assert type(model.bn1) is nn.BatchNorm2d
    tolerance = {"rtol": 0.1, "atol": 0.1} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(folded(x), model(x), **tolerance)
    fused = gf.fuse(copy.deepcopy(model))
    torch.testing.assert_close(gf.fold_batch_norm(fused, x)(x), folded(x))


class UsedElsewhere(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        z = self.bn1(y)
        return self.bn2(z) + y


class ConvTwice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)) + self.bn2(self.conv1(x))


class NormTwice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)) + self.bn1(self.conv2(x))


class Returned(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv1(x)
        return y, self.bn1(y)


class BatchStatistics(Net):
    def __init__(self) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x))


class Held(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.features = self.conv1(x)
        return self.bn1(self.features)


@pytest.mark.parametrize("form", [UsedElsewhere, ConvTwice, NormTwice, Returned, BatchStatistics, Held])
def test_what_must_not_be_folded(form: type[nn.Module]) -> None:
    model = form()
    if form is not BatchStatistics:
        randomise(model)
    folded = gf.fold_batch_norm(model.eval(), X)
    assert [type(m) for m in folded.modules()] == [type(m) for m in model.modules()]
    torch.testing.assert_close(folded(X), model(X))


def test_folding_that_would_change_what_the_model_does_is_refused() -> None:
    class ReadsBehind(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.bn1(self.conv1(x)) + self.bn1.running_mean.view(1, -1, 1, 1)

    with pytest.raises(RuntimeError, match=r"batch norms of ReadsBehind cannot be folded: .*running_mean"):
        gf.fold_batch_norm(randomise(ReadsBehind()), X)
