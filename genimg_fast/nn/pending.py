"""Norms that wait for the activation, or the addition and the activation, that may follow them.

In methods that :mod:`genimg_fast.nn.rewriting` has written anew, and in :class:`genimg_fast.nn.Sequential`,
calls go through :func:`call`. A norm's call there returns a :class:`Pending` value: the norm has not run. If a
ReLU, LeakyReLU or SiLU comes next, all of it runs as one operator, with what was added between the two; if
anything else does, the norm runs as it always would.

Invariants:
    * Every norm that was called has run when the method that called it is left (:func:`leave`), and those of
      one layer run in the order of their calls: running statistics are what they would have been.
    * What a norm waits with does not change meanwhile: before it, or what shares its memory, is handed to what may
      change it, the norm runs. Methods that are written anew are handed the norm as well, and see to that by
      themselves. A change that nobody here sees raises an error, as a tensor counts its changes.
    * ``x += norm`` waits where nobody but the name ``x`` has the tensor: then it may become another one.
"""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from genimg_fast.nn.batch_norm_act import (
    WAITING,
    forward_batch_norm,
    normalise_again,
)
from genimg_fast.nn.conv import run_image_conv
from genimg_fast.nn.group_norm_act import forward_group_norm
from genimg_fast.nn.roles import (
    ACTIVATION,
    BATCH_NORM,
    DROPOUT,
    FROZEN,
    GROUP_NORM,
    IDENTITY,
    IMAGE_CONV,
    LEAF,
    NORMS,
    OTHER,
    SYNC_BATCH_NORM,
    WAITS,
    Role,
    is_batch_norm,
    is_frozen,
    is_leaf,
    is_observed,
    role_of,
)
from genimg_fast.ops._activations import activate
from genimg_fast.ops._dispatch import Kernels, is_transformed
from genimg_fast.ops.batch_norm_act import batch_norm_act
from genimg_fast.ops.batch_norm_act.dispatch import KERNELS as BATCH_NORM_KERNELS
from genimg_fast.ops.group_norm_act import group_norm_act
from genimg_fast.ops.group_norm_act.dispatch import KERNELS as GROUP_NORM_KERNELS

Waiting = list["Pending"]
AROUND = "_gf_around"
"""The argument of a method that is written anew for what waits, in those that call it, with what it is handed."""


class Norm:
    """A batch norm's call that may not have run yet.

    Args:
        input: What is normalised.
        layer: The layer that is called; or, for a call of a function, its running mean.
        alone: Runs it as written.
        fused: Runs it with an activation, a slope and a residual.
        again: As ``fused``, without a trace in running statistics.
    """

    __slots__ = ("_key", "again", "alone", "fused", "has_run", "input", "layer", "pending", "version")

    def __init__(
        self,
        input: Tensor,
        layer: nn.Module | Tensor | None,
        alone: Callable[[], Tensor],
        fused: Callable[[str, float, Tensor | None], Tensor],
        again: Callable[[str, float, Tensor | None], Tensor],
    ) -> None:
        self.input, self.layer = input, layer
        self.alone, self.fused, self.again = alone, fused, again
        self.version = _version(input)
        self.has_run = False
        self.pending: Pending | None = None  # its value
        self._key = id(layer)
        if layer is not None and not torch.compiler.is_compiling():
            if self._key in WAITING:
                WAITING[self._key].settle()
            WAITING[self._key] = self

    def settle(self) -> None:
        """Run the norm by itself, as its layer is called again by somebody else."""
        if not self.has_run and self.pending is not None:
            self.pending.value("its layer is called again")

    def run(self, activation: str, negative_slope: float, residual: Tensor | None) -> Tensor:
        """Run the batch norm; a second time, statistics stay what they are."""
        if _version(self.input) != self.version:
            raise RuntimeError(
                "the input of a batch norm was changed in place before the activation behind it ran, by a view of "
                "it perhaps: genimg_fast.unfuse(model) runs the two apart"
            )
        if self.has_run:
            return self.again(activation, negative_slope, residual)
        self.has_run, self.pending = True, None
        if not torch.compiler.is_compiling() and WAITING.get(self._key) is self:
            del WAITING[self._key]
        if activation == "identity" and residual is None:
            return self.alone()
        return self.fused(activation, negative_slope, residual)


class Pending:
    """The value of a batch norm that may not have run yet, or of a sum of one and a tensor.

    Args:
        norm: The batch norm.
        residual: What is added to its result.
    """

    __slots__ = ("_became", "_sums", "_value", "layers", "norm", "residual")

    def __init__(self, norm: Norm, residual: Tensor | None = None) -> None:
        self.norm, self.residual = norm, residual
        if residual is None:
            norm.pending = self
        self.layers: list[Any] = [norm.layer]  # those whose calls returned it
        self._value: Tensor | None = None
        self._became: Pending | None = None  # this value after an addition in place
        self._sums: list[Pending] | None = None  # with this value

    def value(self, why: str = "") -> Tensor:
        """Get the tensor; ``why`` says, for a report, what asks for it."""
        if self._became is not None:
            return self._became.value(why)
        if self._value is None:
            first = not self.norm.has_run
            self._value = self.norm.run("identity", 0.0, self.residual)
            if first:
                _tell(self, "", why)
            for total in self._sums or ():  # now, while what was added is what it was
                if total._value is None and total._became is None and total.residual is not None:
                    total._value = self._value + total.residual
            self._sums = None
        return self._value

    @property
    def waits(self) -> bool:
        """Whether the batch norm has not run."""
        return self._became is None and self._value is None and not self.norm.has_run

    def activate(self, activation: str, negative_slope: float, in_place: bool) -> Tensor:
        """Apply an activation; in place, it is applied for all that have this value."""
        if not self.waits:
            return activate(self.value(f"goes to {activation}"), activation, negative_slope, in_place)
        result = self.norm.run(activation, negative_slope, self.residual)
        _tell(self, activation, "")
        if in_place:
            self._value = result
        return result

    def plus(self, other: Tensor) -> Pending | None:
        """Get the sum with a tensor, or None if it cannot wait."""
        x = self.norm.input
        if not self.waits or self.residual is not None or type(other) is not type(x):
            return None
        if other.shape != x.shape or other.dtype != x.dtype or other.device != x.device:
            return None
        total = Pending(self.norm, other)
        total.layers = self.layers
        self._sums = [*(self._sums or ()), total]
        return total

    def become(self, other: Pending) -> None:
        """Be another value from now on."""
        self._became = other


def done(value: Any, why: str = "") -> Any:
    """Make a tensor of a pending value; leave everything else."""
    return value.value(why) if type(value) is Pending else value


def keep(value: Any) -> Any:
    """Let a value wait past the next statement, unless nobody could tell that its input was changed meanwhile."""
    if type(value) is Pending and not torch.compiler.is_compiling() and value.norm.input.is_inference():
        return value.value("inference mode does not tell if its input is changed")
    return value


def settle(waiting: Waiting) -> None:
    """Run all that waits."""
    for value in reversed(waiting):  # a sum before what it is a sum of
        if value.waits:
            value.value("what comes next may have any effect")
    waiting.clear()


def leave(waiting: Waiting, result: Any = None, around: Iterable[Pending] = ()) -> Any:
    """Run what waits at the end of a method, but for its result, and for what waits in the methods around it."""
    if waiting:
        for value in waiting:
            if value.waits and value not in around and not (type(result) is Pending and value.norm is result.norm):
                value.value("nothing uses it")
        waiting.clear()
    return result


def call(waiting: Waiting, function: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Call a function or a layer.

    Args:
        waiting: The pending values of the method that calls.
        function: What is called.
        *args: What with; any of them may be pending.
        **kwargs: Likewise, none pending.

    Returns:
        The result, which may be pending.
    """
    if waiting:
        waiting[:] = [value for value in waiting if value.waits]  # what has run would keep its input in memory
        args = tuple(done(a) if type(a) is Pending and not a.waits else a for a in args)  # as any other tensor
    if isinstance(function, nn.Module):
        role = role_of(type(function))
        only = args[0] if len(args) == 1 and not kwargs else None
        if type(only) is not Pending:  # else nothing is handed over
            changes = role[0] in (ACTIVATION, DROPOUT) and function.inplace
            if is_leaf(role) and not (waiting and (changes or is_observed(function))):
                if only is not None:  # a short cut, for these are most of a network's layers
                    return function(only)
            elif not waiting and only is not None and _is_left_to_torch(role, function, only):
                return function(only)  # another one, as what is so short is soon longer
        return _call_layer(waiting, function, role, only, args, kwargs)
    if waiting:
        if not _only_computes(function):
            settle(waiting)
        elif type(function) is types.FunctionType or "out" in kwargs or function in _IN_PLACE:
            _keep_safe(waiting, (getattr(function, "__self__", None), *args, *kwargs.values()))
    if type(function) is types.MethodType:
        waits = getattr(type(function.__self__), "_gf_above", _NOTHING).get(function.__func__)
        if waits is not None:
            args = tuple(done(a) for a in args)
            return _entered(waiting, waits(function.__self__, *args, **kwargs), None)
    if args and type(args[0]) is Pending:
        parse = _ACTIVATIONS.get(function) if isinstance(function, _FUNCTIONS) else None
        try:
            activation = None if parse is None else parse(*args[1:], **kwargs)
        except TypeError:  # the function itself will say what is wrong
            activation = None
        if activation is not None:
            return args[0].activate(*activation)
    if function in (F.batch_norm, F.group_norm) and not (args and type(args[0]) is Pending):
        pending = (_functional if function is F.batch_norm else _functional_group_norm)(*args, **kwargs)
        if pending is not None:
            waiting.append(pending)
            return pending
    if function is torch.add and len(args) == 2 and not kwargs:
        return add(waiting, *args)
    if any(type(a) is Pending for a in args):
        why = f"goes to {getattr(function, '__name__', type(function).__name__)}"
        args = tuple(done(a, why) for a in args)
    return function(*args, **kwargs)


def change(waiting: Waiting, function: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Call a function whose name says that it works in place."""
    settle(waiting)
    return function(*(done(a) for a in args), **kwargs)


def method(waiting: Waiting, value: Any, name: str, /, *args: Any, **kwargs: Any) -> Any:
    """Call a method of a value that may be pending."""
    run = change if name.endswith("_") and not name.endswith("__") else call
    if type(value) is Pending and not value.waits:
        value = value.value()
    if type(value) is not Pending:
        return run(waiting, getattr(value, name), *args, **kwargs)
    if name in ("relu", "relu_") and not args and not kwargs:
        return value.activate("relu", 0.0, name == "relu_")
    if name in ("add", "add_") and len(args) == 1 and not kwargs:
        return (add if name == "add" else add_in_place)(waiting, value, args[0])
    return run(waiting, getattr(value.value(f"goes to {name}"), name), *args, **kwargs)


def add(waiting: Waiting, one: Any, other: Any) -> Any:
    """Add two values, either of which may be pending."""
    total = _sum(waiting, one, other)
    return done(one, _OTHER_KIND) + done(other, _OTHER_KIND) if total is None else total


def add_in_place(waiting: Waiting, one: Any, other: Any) -> Any:
    """Add to a value in place; the caller gives the result the only name that ``one`` has there."""
    if type(one) is Pending:
        total = _sum(waiting, one, other) if one.waits else None
        if total is not None:
            one.become(total)
            return total
    elif type(other) is Pending and not torch.compiler.is_compiling() and sys.getrefcount(one) <= _REFERENCES:
        total = _sum(waiting, other, one) if _may_give_way(one, other) else None
        if total is not None:
            return total
    one, other = done(one, _OTHER_KIND), done(other, "is added to a tensor in place")
    _keep_safe(waiting, (one,))
    one += other
    return one


def _count_references(waiting: Waiting, one: Any, other: Any) -> int:
    return sys.getrefcount(one)


def _references_of_a_name() -> int:
    """Count what :func:`add_in_place` counts of a value that nothing but a name has, with this Python."""
    value: Any = object()
    value = _count_references([], value, None)
    return int(value)


def _users(tensor: Tensor) -> tuple[int, int, int]:
    """Count the users of a tensor that are none of Python's names, autograd for one, and those of its memory."""
    storage = tensor.untyped_storage()
    uses: int = torch._C._storage_Use_Count(storage._cdata)
    return tensor._use_count(), sys.getrefcount(storage), uses  # type: ignore[attr-defined]


_REFERENCES = _references_of_a_name()
_NO_OTHER_USERS = _users(torch.empty(1))


def _may_give_way(tensor: Any, summand: Pending) -> bool:
    """Whether a sum may be another tensor than the one that it is added to in place, which a single name has.

    Not so where torch raises an error, where the result would not be what the tensor is, and where something would
    keep what the tensor was: a view, a saved tensor, an array, a hook, a weak reference.
    """
    if type(tensor) is not Tensor or not summand.waits or is_transformed(tensor):
        return False
    input, layer = summand.norm.input, summand.norm.layer
    if tensor.layout != torch.strided or tensor.stride() != input.stride():
        return False
    if tensor.requires_grad and (tensor.is_leaf or tensor.retains_grad or not torch.is_grad_enabled()):
        return False
    if tensor.is_inference() != torch.is_inference_mode_enabled():
        return False
    is_batch = is_batch_norm(layer) if isinstance(layer, nn.Module) else layer is not None
    if not is_batch and tensor.element_size() == 2 and torch.is_autocast_enabled(tensor.device.type):
        return False  # group norms may have a result in float32 there
    if tensor.__dict__ or tensor._backward_hooks or weakref.getweakrefcount(tensor):
        return False
    # An array's memory, and shared memory, cannot be made larger; others may have it.
    return tensor.untyped_storage().resizable() and _users(tensor) == _NO_OTHER_USERS


_OTHER_KIND = "is added to something of another shape or kind"


def _sum(waiting: Waiting, one: Any, other: Any) -> Pending | None:
    """Let a sum wait, if it is one of a batch norm's result and a tensor."""
    if type(one) is not Pending or (one.residual is not None and type(other) is Pending):
        one, other = other, one
    if type(one) is not Pending:
        return None
    summand = done(other, "is added to another batch norm's result")
    total = one.plus(summand) if isinstance(summand, Tensor) else None
    if total is not None:
        waiting.append(total)
    return total


def _call_layer(
    waiting: Waiting, layer: Any, role: Role, only: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call a layer, with ``only`` if that is its single argument."""
    kind, what = role
    observed = is_observed(layer)
    if waiting:
        at_risk = [] if type(only) is Pending else _at_risk(waiting, (*args, *kwargs.values()))
        if at_risk and kind == WAITS and not observed:
            kwargs = {**kwargs, AROUND: at_risk}
        else:
            _run_all(at_risk)
        for value in waiting:
            if value.waits and any(known is layer for known in value.layers):
                value.value("its layer is called again")
    if type(only) is Pending:
        if kind != OTHER and not observed:
            if kind == ACTIVATION:
                slope = layer.negative_slope if what == "leaky_relu" else 0.0
                return only.activate(what, slope, layer.inplace)
            if kind == IDENTITY or (kind == DROPOUT and (layer.p == 0 or not layer.training)):
                return only
            if kind == WAITS and isinstance(layer, nn.Sequential):
                return _entered(waiting, what(layer, only), layer)
        only = only.value(f"goes to {type(layer).__name__}")
        args = (only,)
    elif any(type(a) is Pending for a in args):
        args = tuple(done(a, f"goes to {type(layer).__name__}") for a in args)
    if kind in NORMS:
        if isinstance(only, Tensor) and not observed:
            pending = _of_group_norm(what, layer, only) if what else _of_batch_norm(kind, layer, only)
            if pending is not None:
                waiting.append(pending)
                return pending
    elif kind == WAITS and not observed:
        return _entered(waiting, what(layer, *args, **kwargs), layer)
    return layer(*args, **kwargs)


def _entered(waiting: Waiting, result: Any, layer: Any) -> Any:
    """Take over what a method, or a layer, returned."""
    if type(result) is Pending:
        result.layers = [*result.layers, layer]
        waiting.append(result)
    return result


def with_activation(layer: Any, next_layer: Any, input: Any) -> Tensor | None:
    """Run a norm, or a convolution at an image, and the activation behind it, without waiting.

    Args:
        layer: What is called with ``input``.
        next_layer: What is called with the result, and nothing else is.
        input: No pending value.

    Returns:
        The activation's result; None if :func:`call` is to find out what to run, or a listener to be told.
    """
    kind, run = role_of(type(layer))
    if kind == BATCH_NORM:
        run = forward_batch_norm
    elif kind == IMAGE_CONV:
        run = run_image_conv
    elif kind != GROUP_NORM:
        return None
    next_kind, name = role_of(type(next_layer))
    if next_kind != ACTIVATION and (next_kind != LEAF or name is None or kind != IMAGE_CONV):
        return None
    if LISTENERS or type(input) is not Tensor or is_observed(layer) or is_observed(next_layer):
        return None
    result: Tensor | None = run(layer, input, name, next_layer.negative_slope if name == "leaky_relu" else 0.0)
    return result


def _runs_alone(kernels: Kernels, call: Any) -> bool:
    """Whether torch's own norm is to run, which need not wait for what follows it, as nothing listens."""
    return not LISTENERS and kernels.is_slower("cpu", call)


def _is_left_to_torch(role: Role, layer: Any, input: Any) -> bool:
    kind, run = role
    if kind == BATCH_NORM:
        return _runs_alone(BATCH_NORM_KERNELS, (input, layer.training, False))
    return run is forward_group_norm and _runs_alone(GROUP_NORM_KERNELS, (input, 0, False))


def _of_group_norm(run: Any, layer: Any, input: Tensor) -> Pending | None:
    """Let the call of a group or instance norm wait."""
    if input.dim() < 3 or getattr(layer, "track_running_stats", False):
        return None
    # Not so instance norms: torch's own are slower than group norm of as many groups as channels.
    if run is forward_group_norm and _runs_alone(GROUP_NORM_KERNELS, (input, 0, False)):
        return None

    def fused(activation: str, slope: float, residual: Tensor | None) -> Tensor:
        result: Tensor = run(layer, input, activation, slope, residual)
        return result

    return Pending(Norm(input, layer, lambda: layer(input), fused, fused))


def _of_batch_norm(kind: int, layer: Any, input: Tensor) -> Pending | None:
    """Let the call of a batch norm wait."""
    if kind == FROZEN:
        eps = getattr(layer, "eps", None)
        if not is_frozen(layer) or type(eps) is not float:
            return None
        if input.dim() != 4 or input.dtype != layer.weight.dtype:
            return None
        known = (layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, eps)
        frozen = _functional(input, *known, alone=lambda: layer(input))
        if frozen is not None:
            frozen.norm.layer = layer
        return frozen
    if kind == SYNC_BATCH_NORM:
        batch_statistics = layer.training or layer.running_mean is None
        if batch_statistics and dist.is_available() and dist.is_initialized():
            return None
        if input.dim() < 2 or input.shape[1] == 0:  # it has errors of its own
            return None
    if _runs_alone(BATCH_NORM_KERNELS, (input, layer.training, False)):
        return None
    layer._check_input_dim(input)
    return Pending(
        Norm(
            input,
            layer,
            lambda: layer(input),
            lambda activation, slope, residual: forward_batch_norm(layer, input, activation, slope, residual),
            lambda activation, slope, residual: normalise_again(layer, input, activation, slope, residual),
        )
    )


def _functional(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    alone: Callable[[], Tensor] | None = None,
) -> Pending | None:
    """Let a call of ``torch.nn.functional.batch_norm`` wait."""
    if not isinstance(input, Tensor):
        return None
    known: tuple[Any, ...] = (weight, bias, training, momentum, eps)

    def run(statistics: tuple[Any, Any], activation: str, slope: float, residual: Tensor | None) -> Tensor:
        return batch_norm_act(
            input, *statistics, *known, activation=activation, negative_slope=slope, residual=residual
        )

    seen = (None, None) if training else (running_mean, running_var)
    return Pending(
        Norm(
            input,
            running_mean,
            alone or (lambda: F.batch_norm(input, running_mean, running_var, *known)),
            lambda activation, slope, residual: run((running_mean, running_var), activation, slope, residual),
            lambda activation, slope, residual: run(seen, activation, slope, residual),
        )
    )


def _functional_group_norm(
    input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Pending | None:
    """Let a call of ``torch.nn.functional.group_norm`` wait."""
    if not isinstance(input, Tensor) or _runs_alone(GROUP_NORM_KERNELS, (input, 0, False)):
        return None

    def fused(activation: str, slope: float, residual: Tensor | None) -> Tensor:
        return group_norm_act(
            input, num_groups, weight, bias, eps, activation=activation, negative_slope=slope, residual=residual
        )

    alone = functools.partial(F.group_norm, input, num_groups, weight, bias, eps)
    return Pending(Norm(input, None, alone, fused, fused))


def _at_risk(waiting: Waiting, handed: Iterable[Any]) -> Waiting:
    """Find what waits with a tensor that is handed to something else, which might change it."""
    tensors = [a for a in handed if isinstance(a, Tensor)]
    found = []
    for value in waiting:
        if value.waits:
            held = [value.norm.input] if value.residual is None else [value.norm.input, value.residual]
            if any(_share_memory(a, h) for a in tensors for h in held):
                found.append(value)
    return found


def _run_all(at_risk: Waiting) -> None:
    for value in reversed(at_risk):  # a sum before what it is a sum of
        if value.waits:
            value.value("its input is used meanwhile")


def _keep_safe(waiting: Waiting, handed: Iterable[Any]) -> None:
    """Run what waits with a tensor that is handed to something else."""
    _run_all(_at_risk(waiting, handed))


_is_alias_of: Callable[[Tensor, Tensor], bool] = torch._C._is_alias_of  # type: ignore[attr-defined]


def _share_memory(one: Tensor, other: Tensor) -> bool:
    if one is other or torch.compiler.is_compiling():
        return one is other
    return _is_alias_of(one, other)


def _only_computes(function: Any) -> bool:
    """Whether a function is one of torch's that leave everything alone but what they are given.

    Functions of Python, the layers' methods among them, may do anything.
    """
    if isinstance(function, _FUNCTIONS) and function in _ACTIVATIONS:
        return True
    if type(function) in (types.FunctionType, types.MethodType):
        return getattr(function, "__module__", None) == "torch.nn.functional"
    return True


def _version(tensor: Tensor) -> int:
    if torch.compiler.is_compiling() or tensor.is_inference():
        return 0
    return tensor._version


def _relu(inplace: bool = False) -> tuple[str, float, bool]:
    return "relu", 0.0, inplace


def _leaky_relu(negative_slope: float = 0.01, inplace: bool = False) -> tuple[str, float, bool] | None:
    return ("leaky_relu", negative_slope, inplace) if type(negative_slope) in (float, int) else None


def _silu(inplace: bool = False) -> tuple[str, float, bool]:
    return "silu", 0.0, inplace


_NOTHING: dict[Any, Any] = {}
_ACTIVATIONS: dict[Any, Callable[..., tuple[str, float, bool] | None]] = {
    F.relu: _relu,
    torch.relu: lambda: _relu(),
    F.relu_: lambda: _relu(True),
    torch.relu_: lambda: _relu(True),
    F.leaky_relu: _leaky_relu,
    F.silu: _silu,
    F.leaky_relu_: lambda negative_slope=0.01: _leaky_relu(negative_slope, True),
}
_FUNCTIONS = tuple({type(function) for function in _ACTIVATIONS})
_IN_PLACE = (torch.relu_, F.leaky_relu_)  # the others are called by change()
Told = Callable[[Pending, str, str], None]
LISTENERS: list[Told] = []


def listen(listener: Told) -> None:
    """Tell a function of every batch norm that runs: its value, the activation, or why there is none."""
    LISTENERS.append(listener)


def stop_listening(listener: Told) -> None:
    """Undo :func:`listen`."""
    LISTENERS.remove(listener)


def _tell(value: Pending, activation: str, why: str) -> None:
    for listener in LISTENERS:
        listener(value, activation, why)
