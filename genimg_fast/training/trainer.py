"""What all trainers share: recipe, optimisers, averaged weights, and what a checkpoint holds."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from genimg_fast._evaluating import evaluating
from genimg_fast.models.common import check_choice, check_sizes
from genimg_fast.options import Decay, NonNegativeFloat, NonNegativeInt, PositiveInt
from genimg_fast.training.adam import Adam
from genimg_fast.training.graphs import StepGraphs
from genimg_fast.training.muon import Muon
from genimg_fast.training.processes import world_size

Precision = Literal["fp32", "bf16", "fp16"]
Schedule = Literal["constant", "linear", "cosine"]
_DTYPES: dict[Precision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Its name since torch 2.15, and before.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)
# What optimisers keep for a parameter.
_STATES = {Adam: {"step", "exp_avg", "exp_avg_sq"}, Muon: {"momentum"}}
_Tensors = tuple[Tensor, ...] | list[Tensor]
_Part = TypeVar("_Part")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train, whatever is trained.

    Args:
        precision: Of autocast: ``"fp32"`` for none, ``"bf16"``, or ``"fp16"``, with scaled losses.
        channels_last: Whether images and weights of convolutions are in channels_last; default: on a CPU, with
            2-D convolutions and without instance norm, where it is mostly faster. The trainer's recipe says which.
        compile: Whether to run networks through :func:`torch.compile`. Each on its own; not those with
            spectral norm.
        cuda_graph: Whether to replay steps as CUDA graphs; needs a GPU. It saves the time of launching hundreds of
            kernels each: for small networks and fast GPUs, in one process.
        grad_clip: Largest norm of a network's whole gradient; 0: any.
        accumulate: Parts that a batch is cut into to save memory. Their gradients add up to one step. It has to
            divide the batch; batch norm sees the parts.
        schedule: Course of the learning rate, down to 0 at the last step: ``"linear"`` or ``"cosine"``; or
            ``"constant"``. The last step is that of ``decay_steps``.
        decay_steps: Number of the step at which it is 0.
        ema: Decay of the average of weights and buffers that pictures and samples come from; 0: none. It starts
            lower, so that the average forgets the first steps: (1 + step) / (10 + step).

    Raises:
        ValueError: If a value is out of range or unknown.

    Example:
        >>> import genimg_fast as gf
        >>> recipe = gf.training.Recipe(precision="bf16", channels_last=True)
        >>> trainer = gf.training.GANTrainer(gf.models.DCGAN(channels=8), recipe=recipe)
    """

    precision: Precision = "fp32"
    channels_last: bool | None = None
    compile: bool = False
    cuda_graph: bool = False
    grad_clip: NonNegativeFloat = 0.0
    accumulate: PositiveInt = 1
    schedule: Schedule = "constant"
    decay_steps: NonNegativeInt = 0
    ema: Decay = 0.999

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, _DTYPES)
        check_choice("schedule", self.schedule, get_args(Schedule))
        check_sizes(accumulate=self.accumulate)
        if not self.grad_clip >= 0:
            raise ValueError(f"grad_clip must be at least 0, got {self.grad_clip}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if self.decay_steps < 1 and self.schedule != "constant":
            raise ValueError(f"a {self.schedule} schedule needs decay_steps of at least 1, got {self.decay_steps}")

    def lr_factor(self, step: int) -> float:
        """Share of the learning rate after ``step`` steps."""
        done = min(1.0, step / self.decay_steps) if self.schedule != "constant" else 0.0
        return 0.5 * (1 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1 - done


def is_faster_channels_last(model: nn.Module) -> bool:
    """Tell whether training steps of a model are faster in channels_last, where it is now.

    On a CPU they are, if it has 2-D convolutions: those that go to more pixels gain most. Instance norm, of one
    channel of one image at a time, costs more than that gains. The figures are in docs/benchmarks.md.
    """
    modules = list(model.modules())
    convolutions, norms = (nn.Conv2d, nn.ConvTranspose2d), nn.modules.instancenorm._InstanceNorm
    return (
        next(model.parameters()).is_cpu
        and any(isinstance(module, convolutions) for module in modules)
        and not any(isinstance(module, norms) for module in modules)
    )


def generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """Make a generator for a device, which follows from one on the CPU."""
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))


class BaseTrainer:
    """A model, its optimisers, their recipe; a subclass adds ``step`` and ``pictures``.

    Args:
        model: What to train, on the device to train on.
        recipe: How; ``Recipe()`` if None.
        seed: Seed of the fixed random numbers behind pictures.

    Raises:
        ValueError: If the recipe asks for CUDA graphs where there are none.

    Example:
        >>> import torch, genimg_fast as gf
        >>> class Denoiser(gf.training.BaseTrainer):
        ...     curves = (("loss",),)
        ...
        ...     def __init__(self, model, recipe=None):
        ...         super().__init__(model, recipe=recipe, seed=0)
        ...         self.add_optimizer("model", model.parameters(), lr=1e-3, betas=(0.9, 0.999))
        ...         self.network = self.prepared(model)
        ...
        ...     def step(self, images, labels):
        ...         return self.take_step(self.update, images)
        ...
        ...     def update(self, images):
        ...         losses = []
        ...         with self.descending("model"):
        ...             for (part,) in self.parts(images):
        ...                 with self.autocast():
        ...                     loss = (self.network(part + torch.randn_like(part)) - part).square().mean()
        ...                 self.backward(loss)
        ...                 losses.append(loss.detach())
        ...         return {"loss": torch.stack(losses).mean()}
        ...
        ...     def pictures(self, images, labels):
        ...         return {"denoised": self.sampler(images + torch.randn_like(images))}
        >>> trainer = Denoiser(gf.nn.Conv2d(1, 1, 3, padding=1))
        >>> history = gf.training.fit(trainer, gf.data.load_dataset("digits", image_size=8), steps=2)
        >>> history[-1]["step"]
        2
    """

    def __init__(self, model: Any, *, recipe: Recipe | None, seed: int) -> None:
        recipe = Recipe() if recipe is None else recipe
        if recipe.channels_last is None:
            recipe = replace(recipe, channels_last=is_faster_channels_last(model))
        self.model = model
        self.recipe = recipe
        self.seed = seed
        self.device = next(model.parameters()).device
        self.steps_done = 0
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self._lrs: dict[str, list[float]] = {}
        self._parallel: list[DistributedDataParallel] = []
        self._graphs = StepGraphs(self.device) if recipe.cuda_graph else None
        if recipe.cuda_graph and world_size() > 1:
            raise ValueError(f"cuda_graph is for training in one process, and there are {world_size()}")
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self.averaged: AveragedModel | None = None
        if recipe.ema > 0:
            self.averaged = AveragedModel(model, multi_avg_fn=self._average, use_buffers=True)
            self.averaged.requires_grad_(False)
            # The vectors of spectral norm's power iteration: an average of unit vectors is shorter than one.
            both = zip(self.averaged.module.named_buffers(), model.buffers(), strict=True)
            self._unit_vectors = [(ours, b) for (name, ours), b in both if name.endswith(("._u", "._v"))]

    @property
    def sampler(self) -> Any:
        """The model with averaged weights, or, without them, the one that is trained."""
        return self.model if self.averaged is None else self.averaged.module

    @contextmanager
    def evaluation(self) -> Iterator[Any]:
        """Get the model that samples come from, :attr:`sampler`, in evaluation mode and without gradients."""
        with torch.no_grad(), evaluating(self.sampler):
            yield self.sampler

    def add_optimizer(
        self, name: str, parameters: Iterable[Any], *, lr: float, betas: tuple[float, float]
    ) -> None:
        """Make an Adam for parameters, or groups of them, under a name."""
        # One kernel for all parameters instead of a dozen small ones for each.
        fused = self.device.type in ("cpu", "cuda")
        self._keep(name, Adam(parameters, lr, betas, fused=fused))

    def add_muon(self, name: str, parameters: Iterable[Any], *, lr: float, momentum: float) -> None:
        """Make a Muon for matrices and kernels of convolutions, under a name."""
        self._keep(name, Muon(parameters, lr=lr, momentum=momentum))

    def _keep(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        self.optimizers[name] = optimizer
        self._lrs[name] = [group["lr"] for group in optimizer.param_groups]
        self._make_recordable(optimizer)

    def _make_recordable(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["capturable"] = self._graphs is not None
            if self._graphs is not None:  # a graph would keep the value of a number
                group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=self.device).clone()

    def prepared(self, network: nn.Module) -> Any:
        """Return what to call for a network in training: compiled, its gradients averaged over processes."""
        wrapped: Any = network
        # Compiled, a forward pass may overwrite vectors of spectral norm that the backward pass of another needs.
        if self.recipe.compile and any(name.endswith("._u") for name, _ in network.named_buffers()):
            warnings.warn(f"{type(network).__name__} is not compiled: it has spectral norm", stacklevel=3)
        elif self.recipe.compile:
            wrapped = torch.compile(network)
        if world_size() > 1:
            # Each process keeps its own running statistics: they are not broadcast, since writing to them between
            # two forward passes would spoil the first one's backward pass.
            options: dict[str, Any] = {_SYNC_BUFFERS: False}
            wrapped = DistributedDataParallel(wrapped, **options)
            self._parallel.append(wrapped)
        return wrapped

    def take_step(
        self, compute: Callable[..., dict[str, Tensor]], *tensors: Tensor | None, **settings: Any
    ) -> dict[str, Tensor]:
        """Take a step: ``compute(*tensors, **settings)``, as a CUDA graph if the recipe says so; count it.

        Args:
            compute: Changes the model, and returns scalars. All that may be different in the next step are the
                tensors, and the settings that its code branches on.
            *tensors: For ``compute``.
            **settings: For ``compute``; a few combinations of hashable values.

        Returns:
            The scalars.
        """
        for name, optimizer in self.optimizers.items():
            for group, lr in zip(optimizer.param_groups, self._lrs[name], strict=True):
                now = lr * self.recipe.lr_factor(self.steps_done)
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(now)
                else:
                    group["lr"] = now

        def compute_and_rescale(*tensors: Tensor | None, **settings: Any) -> dict[str, Tensor]:
            values = compute(*tensors, **settings)
            self.scaler.update()
            return values

        if self._graphs is None:
            values = compute_and_rescale(*tensors, **settings)
        else:
            values = self._graphs.run(compute_and_rescale, tensors, settings)
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
            for ours, current in self._unit_vectors:
                ours.copy_(current)
        self.steps_done += 1
        return values

    def parts(self, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
        """Cut a batch into the recipe's parts and go through them; images get its memory format.

        Args:
            *tensors: The batch, of one length; None stands for what it does not have.

        Yields:
            The parts of each.

        Raises:
            ValueError: If the batch cannot be cut into parts of one length.
        """
        if self.recipe.channels_last:
            tensors = tuple(
                t.contiguous(memory_format=torch.channels_last) if t is not None and t.ndim == 4 else t
                for t in tensors
            )
        batch = next(len(t) for t in tensors if t is not None)
        if batch % self.recipe.accumulate != 0:  # the parts' means would not weigh the same
            raise ValueError(f"accumulate must divide the batch, {batch}, got {self.recipe.accumulate}")
        cut = [
            [None] * self.recipe.accumulate if t is None else t.tensor_split(self.recipe.accumulate)
            for t in tensors
        ]
        return self.in_turn(list(zip(*cut, strict=True)))

    def in_turn(self, parts: Sequence[_Part]) -> Iterator[_Part]:
        """Go through parts of a batch; processes exchange the sum of the gradients, with the last one."""
        for part in parts[:-1]:
            with self.adding_up():
                yield part
        for network in self._parallel:
            network.require_backward_grad_sync = any(parameter.requires_grad for parameter in network.parameters())
        yield parts[-1]

    @contextmanager
    def adding_up(self) -> Iterator[None]:
        """Let processes keep the gradients of this forward and backward pass to themselves: more will be added."""
        before = [network.require_backward_grad_sync for network in self._parallel]
        for network in self._parallel:
            network.require_backward_grad_sync = False
        yield
        for network, sync in zip(self._parallel, before, strict=True):
            network.require_backward_grad_sync = sync

    def autocast(self) -> AbstractContextManager[None]:
        """Get the context to compute losses in."""
        dtype = _DTYPES[self.recipe.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    @contextmanager
    def descending(self, name: str) -> Iterator[None]:
        """Take a step of an optimiser, with the gradients that :meth:`backward` adds up inside the context."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad()
        yield
        if self.recipe.grad_clip > 0:
            self.scaler.unscale_(optimizer)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.recipe.grad_clip)
        self.scaler.step(optimizer)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one part's loss."""
        self.scaler.scale(loss / self.recipe.accumulate).backward()

    @torch.no_grad()
    def _average(self, averaged: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        assert self.averaged is not None
        if averaged[0].is_floating_point():
            step = int(
                self.averaged.n_averaged
            )  # `count` is its copy on the device, which would have to be read back
            torch._foreach_lerp_(averaged, current, 1 - min(self.recipe.ema, (1 + step) / (10 + step)))
        else:  # counters
            torch._foreach_copy_(averaged, current)

    def state_dict(self) -> dict[str, Any]:
        """Get all that the training has changed: weights, their average, optimisers, loss scale, step."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.averaged is None else self.averaged.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
            "step": self.steps_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned.

        Args:
            state: The state, of a trainer with the same settings.

        Raises:
            ValueError: If the state of an optimiser or of the loss scale is damaged. Other misfits raise whatever
                ``load_state_dict`` of model, average, optimiser or loss scale does.
        """
        self.model.load_state_dict(state["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["ema"])
        for name, optimizer in self.optimizers.items():
            ours = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            optimizer.load_state_dict(state["optimizers"][name])
            _lay_out(optimizer)
            for group, options in zip(optimizer.param_groups, ours, strict=True):
                group.update(options)  # the settings are the same, and a damaged one would show in the next step
            _check_state(name, optimizer)
            self._make_recordable(optimizer)
        for entry, value in state["scaler"].items():
            if type(value) not in (int, float):
                raise ValueError(f"{entry} in the state of the loss scale is damaged")
        self.scaler.load_state_dict(state["scaler"])
        self.steps_done = state["step"]
        if self._graphs is not None:
            self._graphs.forget()


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Bring what an optimiser keeps into the memory format of its parameters: fused Adam takes it to be that."""
    for parameter, state in optimizer.state.items():
        for entry, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[entry] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _check_state(name: str, optimizer: torch.optim.Optimizer) -> None:
    """Find what an optimiser takes from a damaged checkpoint and stumbles over in the next step."""
    entries = _STATES.get(type(optimizer))
    if entries is None:  # of the user's
        return
    for parameter, state in optimizer.state.items():
        if state.keys() != entries:
            raise ValueError(f"the state of optimizer {name} has the entries {', '.join(map(str, state))}")
        for entry, value in state.items():
            shape = () if entry == "step" else parameter.shape
            if not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point():
                raise ValueError(f"{entry} in the state of optimizer {name} is damaged")
