"""Switching existing torch models to the fused layers and back, in place."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from genimg_fast.nn.pending import Pending, listen, stop_listening
from genimg_fast.nn.rewriting import NotRewritableError, fused_class, plain_class
from genimg_fast.nn.roles import is_batch_norm, is_group_norm, is_observed
from genimg_fast.nn.stands_for import STAND_INS, become_torchs, torch_class

Model = TypeVar("Model", bound=nn.Module)


def fuse(model: Model) -> Model:
    """Make a model's norms run as one operator with what follows them, and its other layers fused, in place.

    Batch, group or instance norm followed by ReLU, LeakyReLU or SiLU becomes one operator wherever the two meet
    when the model runs: as layers, as functions (``torch.nn.functional.relu``, ``torch.relu``, ``Tensor.relu_``),
    with an addition between them, at the end of one block and the beginning of another. ``Sequential``,
    recurrent layers and convolutions become those of :mod:`genimg_fast.nn` where these are faster. For that, the
    methods of the model's classes run in a form that is written anew from their source; conditions and loops stay
    as they are, and nothing is traced. Numbers are torch's, to rounding.

    Parameters, buffers, hooks, ``state_dict`` keys and optimizer references stay what they are. A model that was
    loaded whole, from what ``torch.save(model)`` wrote, has torch's layers: this makes them fused again. A layer
    with hooks runs by itself while it has them; a class whose ``forward`` is decorated, or has no source, stays as
    it is. :func:`fuse_report` tells what runs fused, and why the rest does not.

    Args:
        model: Any module.

    Returns:
        The same object.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.fuse(torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.ReLU()))
        >>> type(model)
        <class 'genimg_fast.nn.sequential.Sequential'>
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.norm = torch.nn.BatchNorm1d(8)
        ...
        ...     def forward(self, x):
        ...         return torch.relu(x + self.norm(x))
        >>> gf.fuse(Block())(torch.randn(4, 8)).shape
        torch.Size([4, 8])
    """
    _fuse(model)
    return model


def _fuse(model: nn.Module) -> dict[str, str]:
    """Fuse a model; return, by the names of its layers, why some that call a batch norm stay as they are."""
    left = {}
    for name, module in model.named_modules():
        cls = type(module)
        if cls in STAND_INS:
            # They add no state to torch's classes, so changing an instance's class is all it takes.
            if STAND_INS[cls]._gains(module):  # type: ignore[attr-defined]
                module.__class__ = STAND_INS[cls]
        elif _may_gain(module):
            try:
                object.__setattr__(module, "__class__", fused_class(cls))  # past a __setattr__ of the module's own
            except NotRewritableError as error:
                left[name] = f"{cls.__name__}.forward: {error}"
            except TypeError as error:  # __class__ assignment: another layout of the object
                left[name] = f"{cls.__name__}: {error}"
    return left


def _may_gain(module: nn.Module) -> bool:
    """Whether a module calls norms, its own or others', in a forward that somebody wrote."""
    cls = type(module)
    if plain_class(cls) is not cls or isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        return False
    if (cls.__module__ or "").startswith(("torch.nn.", "torch.ao.", "genimg_fast.nn.")) or "forward" in vars(
        module
    ):
        return False
    if isinstance(module, _NORMS) and not _is_norm(module):
        return True
    return any(isinstance(m, _NORMS) or _is_norm(m) for m in module.modules() if m is not module)


_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


def _is_norm(module: nn.Module) -> bool:
    return is_batch_norm(module) or is_group_norm(module)


def unfuse(model: Model) -> Model:
    """Undo :func:`fuse`, in place.

    Args:
        model: Any module; layers made with ``genimg_fast.nn`` itself become torch's, too. ``BatchNormAct`` layers
            have no counterpart and stay.

    Returns:
        The same object.

    Example:
        >>> import torch, genimg_fast as gf
        >>> type(gf.unfuse(gf.nn.Sequential(gf.nn.BatchNorm1d(8), gf.nn.ReLU())))
        <class 'torch.nn.modules.container.Sequential'>
    """
    for module in model.modules():
        become_torchs(module)
        cls: Any = type(module)
        plain = plain_class(cls)
        if is_parametrized(module):
            # torch has derived a class from what the module was, with properties of its own.
            base = cls.__mro__[1]
            plain = plain_class(torch_class(base))
            own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
            plain = cls if plain is base else type(plain)(cls.__name__, (plain,), own)
        if plain is not cls:
            object.__setattr__(module, "__class__", plain)
    return model


class FusedNorm(NamedTuple):
    """A norm in a report.

    Attributes:
        name: Of the layer in the model; the class of the one around for a call of a function.
        fused: What runs with it as one operator: ``"relu"``, ``"silu"``, ``"add + relu"``, ``"add"`` ...;
            ``""`` for nothing.
        why: Why nothing does.
    """

    name: str
    fused: str
    why: str


class FuseReport(list[FusedNorm]):
    """The norms of a model in the order in which they run; as text, a table."""

    def __str__(self) -> str:
        rows = [("norm", "runs as one with"), *((n.name, n.fused or f"nothing: {n.why}") for n in self)]
        width = max(len(name) for name, _ in rows)
        count = sum(norm.fused != "" for norm in self)
        lines = [f"{name:{width}}  {what}" for name, what in rows]
        return "\n".join([*lines, f"{count} of {len(self)} norms run as one operator with what follows them"])


def fuse_report(model: nn.Module, *inputs: Any, **named_inputs: Any) -> FuseReport:
    """Find out what :func:`fuse` does to a model, without doing it.

    A fused copy of the model runs once, in the mode that the model is in; for training, with gradients.

    Args:
        model: Any module, fused or not; it stays as it is.
        *inputs: What it is called with.
        **named_inputs: Likewise.

    Returns:
        A row for each call of a norm, and for each that was not reached. ``print`` shows a table.

    Raises:
        Exception: Whatever the model raises for these inputs.

    Example:
        >>> import torch, genimg_fast as gf
        >>> nn = torch.nn
        >>> model = nn.Sequential(nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8), nn.Tanh())
        >>> print(gf.fuse_report(model, torch.randn(4, 8)))
        norm  runs as one with
        0     relu
        2     nothing: goes to Tanh
        1 of 2 norms run as one operator with what follows them
    """
    twin = copy.deepcopy(model)
    left = _fuse(unfuse(twin))
    names: dict[Any, str] = {module: name for name, module in twin.named_modules()}
    # The running mean that a function is called with says whose call it is.
    names |= {buffer: name.rpartition(".")[0] for name, buffer in twin.named_buffers()}
    report = FuseReport()

    def told(value: Pending, activation: str, why: str) -> None:
        name = names.get(value.norm.layer, "torch.nn.functional.batch_norm")
        with_sum = ["add"] if value.residual is not None else []
        report.append(FusedNorm(name, " + ".join([*with_sum, *([activation] if activation else [])]), why))

    inputs, named_inputs = copy.deepcopy((inputs, named_inputs))  # which a model may change
    listen(told)
    try:
        with torch.random.fork_rng(), torch.set_grad_enabled(twin.training):
            twin(*inputs, **named_inputs)
    finally:
        stop_listening(told)
    seen = {norm.name for norm in report}
    for name, module in twin.named_modules():
        if name not in seen and _is_norm(module):
            report.append(FusedNorm(name, "", _why_not_seen(name, module, left)))
    return report


def _why_not_seen(name: str, module: nn.Module, left: dict[str, str]) -> str:
    around = [name.rpartition(".")[0]]
    while around[-1]:
        around.append(around[-1].rpartition(".")[0])
    for parent in around:
        if parent in left:
            return left[parent]
    return (
        "it has hooks, or a forward of its own" if is_observed(module) else "it did not run where it could be seen"
    )
