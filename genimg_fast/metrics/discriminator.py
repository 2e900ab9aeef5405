"""How well a discriminator tells real images from generated ones."""

import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from genimg_fast.data.optional import optional_import
from genimg_fast.training.pictures import printable


class DiscriminatorReport(NamedTuple):
    """What :func:`judge_discriminator` returns.

    Attributes:
        accuracy: Share judged right, with logit 0 as the border and both kinds weighing the same.
        auc: Area under the ROC curve: 0.5 if it cannot tell, 1 if it always can.
        false_positive_rate: The ROC curve: share of generated images taken for real, for falling thresholds.
        true_positive_rate: Share of real images taken for real, for the same thresholds.

    Example:
        >>> import torch, genimg_fast as gf
        >>> report = gf.metrics.judge_discriminator(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -2.0]))
        >>> report.false_positive_rate[-1].item(), report.true_positive_rate[-1].item()
        (1.0, 1.0)
    """

    accuracy: float
    auc: float
    false_positive_rate: Tensor
    true_positive_rate: Tensor


def judge_discriminator(real_logits: Tensor, fake_logits: Tensor) -> DiscriminatorReport:
    """Judge a discriminator by its logits; the curve is computed by scikit-learn.

    Args:
        real_logits: For real images, any shape.
        fake_logits: For generated ones, any shape.

    Returns:
        Accuracy, ROC curve and the area under it.

    Raises:
        ValueError: If there are no logits of one kind, or some are not finite.
        ImportError: If scikit-learn is missing.

    Example:
        >>> import torch, genimg_fast as gf
        >>> report = gf.metrics.judge_discriminator(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 1.5]))
        >>> report.accuracy, report.auc
        (0.75, 0.75)
    """
    metrics = optional_import("sklearn.metrics")
    logits = [t.detach().flatten().double().cpu() for t in (real_logits, fake_logits)]
    if any(len(t) == 0 for t in logits):
        raise ValueError("real_logits and fake_logits must not be empty")
    if not all(t.isfinite().all() for t in logits):
        raise ValueError("real_logits and fake_logits must be finite")
    real, fake = logits
    labels = torch.cat((torch.ones_like(real), torch.zeros_like(fake)))
    scores = torch.cat(logits)
    false_positive, true_positive, _ = metrics.roc_curve(labels, scores)
    return DiscriminatorReport(
        accuracy=float((real > 0).double().mean() + (fake <= 0).double().mean()) / 2,
        auc=float(metrics.roc_auc_score(labels, scores)),
        false_positive_rate=torch.from_numpy(false_positive),
        true_positive_rate=torch.from_numpy(true_positive),
    )


def plot_roc(report: DiscriminatorReport, path: str | Path, *, title: str = "") -> None:
    """Draw the ROC curve of a report.

    Args:
        report: What :func:`judge_discriminator` returned.
        path: Image file to write.
        title: A few words to stand above, such as what the images are.

    Raises:
        ImportError: If matplotlib is missing.
        OSError: If the file cannot be written.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.metrics.plot_roc(gf.metrics.judge_discriminator(torch.randn(50) + 1, torch.randn(50)), "roc.png")
    """
    figure = optional_import("matplotlib.figure").Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(report.false_positive_rate, report.true_positive_rate, label=f"AUC {report.auc:.3f}")
    axes.plot([0, 1], [0, 1], "k:", linewidth=1)
    axes.set(xlabel="generated taken for real", ylabel="real taken for real", aspect="equal")
    axes.set_title(printable(title), fontsize="small", parse_math=False, wrap=True)
    axes.grid(alpha=0.3)
    axes.legend()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of a name in another alphabet
        figure.savefig(path, dpi=120)
