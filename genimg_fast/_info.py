"""What is installed and which path is live."""

from __future__ import annotations

import platform
import textwrap
from dataclasses import dataclass, field

import torch

from genimg_fast import _native
from genimg_fast._version import __version__
from genimg_fast.ops.batch_norm_act.dispatch import KERNELS as BATCH_NORM_ACT
from genimg_fast.ops.bf16_conv import KERNELS as BF16_CONV
from genimg_fast.ops.cell_update import KERNELS as CELL_UPDATE
from genimg_fast.ops.group_norm_act.dispatch import KERNELS as GROUP_NORM_ACT
from genimg_fast.ops.image_conv_act.dispatch import KERNELS as IMAGE_CONV_ACT
from genimg_fast.ops.recurrent.dispatch import KERNELS as RECURRENT
from genimg_fast.ops.reparameterize_kl.dispatch import KERNELS as REPARAMETERIZE_KL
from genimg_fast.ops.winograd_conv import KERNELS as WINOGRAD_CONV

_TABLES = {
    "batch_norm_act": BATCH_NORM_ACT,
    "group_norm_act": GROUP_NORM_ACT,
    "image_conv_act": IMAGE_CONV_ACT,
    "reparameterize_kl": REPARAMETERIZE_KL,
    "recurrent": RECURRENT,
    "cell_update": CELL_UPDATE,
    "winograd_conv": WINOGRAD_CONV,
    "bf16_conv": BF16_CONV,
}


@dataclass(frozen=True)
class Info:
    """Facts about this installation; ``print`` it.

    Attributes:
        versions: Of the package, Python, torch and CUDA, by name.
        build: Compilers, torch version and CUDA architectures of the compiled library; empty without one.
        load_error: Why the compiled library is not in use, or None.
        backend: ``"auto"``, ``"native"`` or ``"reference"``.
        simd: Instruction set of the CPU kernels in use, or None.
        gpus: Names of the visible GPUs.
        operators: Operator, then device, then (path, reason). ``"cuda"`` is the current GPU; another has a row,
            such as ``"cuda:1"``, once it turned out that the kernels cannot run there.

    Example:
        >>> import genimg_fast as gf
        >>> sorted(gf.info().versions)
        ['CUDA', 'genimg_fast', 'python', 'torch']
    """

    versions: dict[str, str]
    build: dict[str, str]
    load_error: str | None
    backend: str
    simd: str | None
    gpus: list[str]
    operators: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)

    @property
    def native(self) -> bool:
        """Whether the compiled library is loaded."""
        return self.load_error is None

    def __str__(self) -> str:
        rows = list(self.versions.items())
        rows.append(
            ("library", self.load_error or f"loaded, {', '.join(f'{k} {v}' for k, v in self.build.items())}")
        )
        rows.append(("backend", self.backend))
        rows.append(("CPU SIMD", self.simd or "-"))
        rows.append(("GPUs", ", ".join(self.gpus) or "none visible"))
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        for operator, devices in self.operators.items():
            lines += ["", operator]
            for device, (path, reason) in devices.items():
                lines += textwrap.wrap(
                    reason, 115, initial_indent=f"  {device:<6} {path:<9} ", subsequent_indent=" " * 19
                )
        return "\n".join(lines)


def info() -> Info:
    """Return versions, build facts, visible GPUs and the live path of each operator on each device.

    Returns:
        An :class:`Info`; its ``str`` is what ``python -m genimg_fast info`` prints.

    Example:
        >>> import genimg_fast as gf
        >>> gf.info().operators["batch_norm_act"]["cpu"][0] in ("native", "reference", "torch")
        True
    """
    return Info(
        versions={
            "genimg_fast": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "CUDA": torch.version.cuda or "none (CPU build of torch)",
        },
        build=_native.build_facts(),
        load_error=_native.load_error,
        backend=_native.get_backend(),
        simd=_native.simd_level(),
        gpus=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        operators={name: table.describe() for name, table in _TABLES.items()},
    )
