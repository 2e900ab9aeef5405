"""What is timed: functions that compute the same of the same inputs, and what that takes at least."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genimg_fast.bench.graphed import Graphed

Pass = Literal["forward", "both", "step"]
REFERENCE = "eager"
COMPILED = ("compile", "compile-float32")


@dataclass(frozen=True)
class Step:
    """A step of training, and what it changes: both are compared with the reference's before it is timed.

    Attributes:
        run: Takes all of the step and returns the numbers that it reports, such as losses; if by name, those are
            compared that the reference reports, too. Noise has to come from PyTorch's global generator.
        networks: What it trains, with the same weights in every contender at the start.
        like: Makes from the start the step that this one must train like; default: the reference is that.

    Example:
        >>> import torch, genimg_fast as gf
        >>> net, x = torch.nn.Linear(4, 1), torch.ones(8, 4)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> def descend():
        ...     optimizer.zero_grad()
        ...     loss = net(x).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        ...     return loss.detach()
        >>> step = gf.bench.Step(descend, [net])
        >>> bool(step() > step())
        True
    """

    run: Callable[[], Any]
    networks: Sequence[nn.Module]
    like: Callable[[], "Step"] | None = None

    def __call__(self) -> Any:
        """Take the step."""
        return self.run()


@dataclass(frozen=True)
class Case:
    """Contenders that compute the same, the first of which is judged, and ``"eager"``, which says what is right.

    Attributes:
        contenders: Functions or modules by name. Each takes ``inputs`` and returns a tensor, or a tuple of some;
            the one called ``"eager"`` must also run in float64, in which it is the reference. Of the pass
            ``"step"``, functions without arguments that do all of a training step and return what it reports; the
            judged one has to be a :class:`Step`, and those that are none are timed without a comparison.
        inputs: Tensors, and other values that are handed on as they are. Gradients are taken of those that require
            them, and of the parameters of modules.
        passes: What is timed: ``"forward"``, ``"both"`` (forward and backward) or ``"step"``.
        moved: Bytes that have to be read or written at least, by pass.
        operations: Additions and multiplications that have to be done at least, by pass.
        fixed: Keyword arguments for when results are compared, such as the noise that is random otherwise.
        compiled: Whether ``torch.compile`` of the reference is a contender, too.
        images: Images of a step, for images a second.
        slack: What the error may be is multiplied by this: of recurrent layers, in which rounding grows.
        precision: What steps compute in, where it is less than what the reference computes in.

    Raises:
        ValueError: If none of the contenders is called ``"eager"``.

    Example:
        >>> import torch, genimg_fast as gf
        >>> x = torch.randn(64, 64, requires_grad=True)
        >>> case = gf.bench.Case({"mine": lambda x: x * x.sigmoid(), "eager": torch.nn.functional.silu}, (x,))
        >>> case.judged
        'mine'
    """

    contenders: Mapping[str, Callable[..., Any]]
    inputs: Sequence[Any] = ()
    passes: tuple[Pass, ...] = ("forward", "both")
    moved: Mapping[str, int] = field(default_factory=dict)
    operations: Mapping[str, int] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    compiled: bool = True
    images: int = 0
    slack: float = 1.0
    precision: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if REFERENCE not in self.contenders:
            raise ValueError(
                f"contenders must have one named {REFERENCE!r}, got {', '.join(self.contenders) or 'none'}"
            )

    @property
    def judged(self) -> str:
        """Name of the contender that the others are compared with."""
        return next(iter(self.contenders))

    def peers(self, wanted: Sequence[str] | None = None) -> dict[str, Callable[..., Any]]:
        """Get the contenders that run: the judged one, the reference, and of the others those that are wanted.

        Args:
            wanted: Names; default: all there are, ``"compile"`` included, and on a GPU ``"graph"``.

        Returns:
            Contenders by name.
        """
        found = dict(self.contenders)
        if self.compiled and "step" not in self.passes:
            found["compile"] = torch.compile(self.contenders[REFERENCE], dynamic=False)
        if "step" not in self.passes and on_cuda(self.inputs):
            found["graph"] = Graphed(self.contenders[REFERENCE])
        kept = {self.judged, REFERENCE}
        return {name: f for name, f in found.items() if wanted is None or name in kept or name in wanted}


def on_cuda(inputs: Sequence[Any]) -> bool:
    """Tell whether inputs lie on a GPU."""
    return any(t.is_cuda for t in inputs if isinstance(t, Tensor))


def tensors_of(value: Any) -> tuple[Tensor, ...]:
    """List the tensors of a result: one, or those in a tuple, a list or a mapping of some."""
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return tuple(t for part in value for t in tensors_of(part)) if isinstance(value, (tuple, list)) else ()


def leaves_of(function: Callable[..., Any], inputs: Sequence[Any]) -> list[Tensor]:
    """List what gradients are taken of."""
    leaves = [t for t in inputs if isinstance(t, Tensor) and t.requires_grad]
    return (
        [*leaves, *(p for p in function.parameters() if p.requires_grad)]
        if isinstance(function, nn.Module)
        else leaves
    )


def calls_of(
    function: Callable[..., Any], inputs: Sequence[Any], direction: Pass, **options: Any
) -> Callable[[], tuple[Tensor, ...]]:
    """Make a function without arguments that does a pass.

    Args:
        function: The contender.
        inputs: What it takes.
        direction: The pass.
        **options: Keyword arguments for the contender.

    Returns:
        A function that returns the tensors of the result, or, of forward and backward, the gradients.
    """
    if direction == "step":
        return lambda: tensors_of(function(**options))

    def forward() -> tuple[Tensor, ...]:
        return tensors_of(function(*inputs, **options))

    if direction == "forward":
        return forward
    leaves = _leaves_for(function, inputs)
    grads = _gradients_for([t for t in forward() if t.requires_grad])

    def both() -> tuple[Tensor, ...]:
        results = [t for t in forward() if t.requires_grad]
        return torch.autograd.grad(results, leaves, grads, allow_unused=True, materialize_grads=True)

    return both


def backward_of(function: Callable[..., Any], inputs: Sequence[Any]) -> Callable[[], tuple[Tensor, ...]]:
    """Make a function without arguments that does a backward pass alone, of one forward pass, again and again.

    Args:
        function: The contender.
        inputs: What it takes.

    Returns:
        A function that returns the gradients.
    """
    leaves = _leaves_for(function, inputs)
    results = [t for t in tensors_of(function(*inputs)) if t.requires_grad]
    grads = _gradients_for(results)
    return lambda: torch.autograd.grad(
        results, leaves, grads, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def _leaves_for(function: Callable[..., Any], inputs: Sequence[Any]) -> list[Tensor]:
    leaves = leaves_of(function, inputs)
    if not leaves:
        raise ValueError("no input, and no parameter, requires a gradient: forward alone can be timed")
    return leaves


def _gradients_for(results: Sequence[Tensor]) -> list[Tensor]:
    """Draw gradients of results: the same for every contender, whatever its dtype."""
    generator = torch.Generator(results[0].device if results else "cpu").manual_seed(1)
    return [
        torch.randn(t.shape, generator=generator, device=t.device).to(t).contiguous(memory_format=_format_of(t))
        for t in results
    ]


def _format_of(t: Tensor) -> torch.memory_format:
    if t.dim() == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
