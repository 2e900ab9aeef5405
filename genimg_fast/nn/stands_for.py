"""What makes a layer take the place of a torch.nn class: for scripts, for torch's tools and in files."""

from __future__ import annotations

import copy
import copyreg
import functools
import inspect
import pkgutil
import sys
import textwrap
import traceback
import types
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol

import torch
import torch.fx
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

STAND_INS: dict[type[nn.Module], type[nn.Module]] = {}
"""The class that stands for each of torch's."""


def torch_class(cls: Any) -> Any:
    """Return the torch class that a class stands for, or the class itself if it stands for none."""
    return cls.__dict__.get("_torch_class", cls) if isinstance(cls, StandsFor) else cls


def become_torchs(layer: Any) -> None:
    """Make a layer one of the torch class that its own stands for, in place; leave others as they are."""
    plain = torch_class(type(layer))
    if type(layer) is not plain:
        layer.__class__ = plain


class StandsFor(type(Protocol)):  # type: ignore[misc]
    """Makes a layer's class and the torch class it stands for one to ``isinstance``, ``==`` and tables of classes.

    A script whose ``nn`` is this package asks ``isinstance(layer, nn.X)`` of layers that it did not make itself,
    those of torchvision's models for one; torch's tools look up ``type(layer)`` in tables of torch's classes. Only
    ``is`` tells the two apart. It holds for the stand-ins alone, not for what users derive from them.
    Derived from the class of protocols, an ABCMeta, so that those and abstract bases can be mixed in as with
    torch's classes.
    """

    def __new__(meta, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> Any:
        """Create a class, unless it is a stand-in that there is.

        cloudpickle takes a class apart whose name leads to another one, and builds it again where it unpickles.
        """
        # Without a class statement, the place where type() was called; ABCMeta's own call would hide it.
        module = namespace.setdefault("__module__", sys._getframe(1).f_globals.get("__name__", ""))
        plain = getattr(sys.modules.get(module), name, None)
        if isinstance(plain, type) and plain.__module__ == module and plain in STAND_INS:
            return STAND_INS[plain]
        return super().__new__(meta, name, bases, namespace, **kwargs)

    @property
    def __bases__(cls) -> tuple[type, ...]:
        """Those of the torch class: with that class itself, which is its equal, no tree of classes would end."""
        bases: tuple[type, ...] = type.__dict__["__bases__"].__get__(torch_class(cls))
        return bases

    def __dir__(cls) -> list[str]:
        """Collect the names of all bases; ``type`` would follow ``__bases__``, past the torch class."""
        return sorted({name for base in cls.__mro__ for name in vars(base)})

    def __instancecheck__(cls, instance: Any) -> bool:
        return cls.__subclasscheck__(type(instance))

    def __subclasscheck__(cls, subclass: type) -> bool:
        plain = torch_class(cls)
        return super().__subclasscheck__(subclass) if plain is cls else issubclass(subclass, plain)

    def __eq__(cls, other: object) -> bool:
        return True if torch_class(cls) is torch_class(other) else NotImplemented

    def __hash__(cls) -> int:
        return type.__hash__(torch_class(cls))


class _Home(str):
    """The module of a stand-in. The class gives torch's, for files look it up there; instances and ``repr`` this.

    ``safe_globals([nn.LSTM])`` then admits what a file calls ``torch.nn.modules.rnn.LSTM``.
    """

    def __get__(self, instance: Any, owner: type) -> str:
        module: str = str(self) if instance is not None else torch_class(owner).__module__
        return module


class _QuantizationConfig:
    """The attribute ``qconfig``, with which torch.ao.quantization takes hold of a layer: then it is torch's."""

    def __get__(self, layer: Any, owner: type) -> Any:
        if layer is None or "qconfig" not in layer.__dict__:
            raise AttributeError("qconfig")
        return layer.__dict__["qconfig"]

    def __set__(self, layer: Any, value: Any) -> None:
        become_torchs(layer)
        layer.__dict__["qconfig"] = value

    def __delete__(self, layer: Any) -> None:
        del layer.__dict__["qconfig"]


class StandIn(metaclass=StandsFor):
    """Base of the layers that run fused in place of a torch class, which is their other, first base.

    What leaves the process is torch's: pickles name torch's class, programs made by torch.export and torch.jit run
    torch's ``forward``. Copies of a layer, and what :mod:`multiprocessing` sends to another process, stay fused.
    """

    __slots__ = ()

    _torch_class: type[nn.Module]
    forward: Callable[..., Any]
    _smallest: tuple[Any, ...]
    """Arguments of the least layer of the torch class, on a device where it draws no random numbers."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if any(base is StandIn for base in cls.__bases__):  # else derived by a user
            plain: Any = cls.__bases__[0]
            cls._torch_class = plain
            STAND_INS[plain] = cls  # type: ignore[assignment]
            cls.__module__ = _Home(cls.__module__)
            note = textwrap.indent(inspect.cleandoc(cls.__doc__ or ""), "    ")
            cls.__doc__ = f"{inspect.cleandoc(plain.__doc__ or '')}\n\n.. note::\n{note}"
            cls.forward = _known_as(plain.forward, cls.__dict__["forward"])
            ForkingPickler.register(cls, _reduce_for_process)

    def __reduce_ex__(self, protocol: Any) -> Any:
        recipe = super().__reduce_ex__(protocol)
        plain = torch_class(type(self))
        # Pickle creates an object without a call for its own class only; the state replaces what the call makes.
        return recipe if plain is type(self) else (plain, self._smallest, *recipe[2:])

    def __copy__(self) -> Any:
        return copy_layer(self, lambda state: state, {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy_layer(self, lambda state: copy.deepcopy(state, memo), memo)

    @staticmethod
    def _gains(layer: Any) -> bool:
        """Whether a layer of the torch class is to be of this class instead."""
        return True

    qconfig = _QuantizationConfig()


def copy_layer(layer: Any, copied: Callable[[Any], Any], memo: dict[int, Any]) -> Any:
    """Copy a layer with its class; ``copied`` makes the copy's state of the layer's."""
    cls: Any = type(layer)
    twin = memo[id(layer)] = cls.__new__(cls)
    if is_parametrized(layer):  # refuses to say its state, lest it be pickled; torch copies it like this
        twin.__dict__.update(copied(layer.__dict__))
    else:
        twin.__setstate__(copied(object.__reduce_ex__(layer, 4)[2]))
    return twin


def _reduce_for_process(layer: Any) -> Any:
    """Reduce a layer for another process of this program. Torch's come here as well, their classes being equal."""
    recipe = object.__reduce_ex__(layer, 4)
    cls = type(layer)
    return recipe if cls is torch_class(cls) else (_create, (cls.__name__,), *recipe[2:])


def _create(name: str) -> Any:
    cls = pkgutil.resolve_name(f"genimg_fast.nn:{name}")
    return cls.__new__(cls)


def _reduce_class(cls: Any, namespace: str) -> Any:
    """Reduce a stand-in to the class that ``namespace`` has by its name, other classes to their names."""
    if cls is torch_class(cls):
        return cls.__qualname__
    return pkgutil.resolve_name, (f"{namespace}:{cls.__name__}",)


copyreg.pickle(StandsFor, functools.partial(_reduce_class, namespace="torch.nn"))
ForkingPickler.register(StandsFor, functools.partial(_reduce_class, namespace="genimg_fast.nn"))


def _known_as(plain: Any, fused: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``forward`` that runs ``fused`` and looks like torch's ``plain``.

    TorchScript compiles the source that is found through ``__wrapped__``, with the names that it finds in
    ``__globals__``; programs that are being recorded for other places get ``plain``; torch.fx gets a leaf, but for
    Sequential, into which it looks.
    """
    tracing, exporting = torch._C._get_tracing_state, torch.compiler.is_exporting
    proxy = torch.fx.Proxy

    def traced(self: Any, input: Any, *arguments: Any, **options: Any) -> Any:
        leaves = plain is not nn.Sequential.forward and is_leaf(self, input)
        return (leaf if leaves else plain)(self, input, *arguments, **options)

    def forward(self: Any, input: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(input, proxy):
            return traced(self, input, *arguments, **options)
        if tracing() or exporting():
            return plain(self, input, *arguments, **options)
        return fused(self, input, *arguments, **options)

    looks = types.FunctionType(forward.__code__, plain.__globals__, closure=forward.__closure__)
    return functools.wraps(plain)(looks)


def is_leaf(layer: nn.Module, input: Any) -> bool:
    """Whether torch.fx is tracing a model that calls this layer of the package.

    Into what users derive from one, and into the layer that is traced itself, tracers look, as with torch's.
    """
    if not isinstance(input, torch.fx.Proxy) or not layer.__module__.startswith("genimg_fast."):
        return False
    return getattr(input.tracer, "root", layer) is not layer


def leaf(layer: nn.Module, input: Any, *arguments: Any, **options: Any) -> Any:
    """Make the layer a leaf of the graph that torch.fx is tracing, as tracers do with the layers of torch.nn.

    Arguments that are None are left out. ``input`` is a Proxy.
    """
    if _traced_by_fuser():
        become_torchs(layer)
    tracer = input.tracer
    given = tuple(argument for argument in arguments if argument is not None)
    options = {name: option for name, option in options.items() if option is not None}
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), (input, *given), options)


def _traced_by_fuser() -> bool:
    """Whether ``torch.fx.experimental.optimization.fuse`` is tracing, which compares classes with ``is``."""
    optimization: Any = sys.modules.get("torch.fx.experimental.optimization")
    codes = (frame.f_code for frame, _ in traceback.walk_stack(None))
    return optimization is not None and any(code is optimization.fuse.__code__ for code in codes)
