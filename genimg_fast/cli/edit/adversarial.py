"""A picture that a classifier takes for something else."""

import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from genimg_fast.cli.arguments import blaming, is_out_of_memory, say
from genimg_fast.cli.edit.pictures import PictureFile, Written
from genimg_fast.cli.runs import Session
from genimg_fast.editing import attack
from genimg_fast.editing.files import before_and_after, check_ending, load_picture, save_picture
from genimg_fast.options import NonNegativeFloat, NonNegativeInt, OptionError, PositiveInt, Reader
from genimg_fast.training.trainables import run_file

Classifier = Annotated[str, Reader(str, "FILE.py:NAME|FILE")]


def adversarial(
    image: PictureFile,
    *,
    classifier: Classifier,
    label: NonNegativeInt | None = None,
    target: NonNegativeInt | None = None,
    method: Literal["fgsm", "pgd", "mi-fgsm", "apgd"] = "pgd",
    norm: Literal["linf", "l2"] = "linf",
    epsilon: NonNegativeFloat | None = None,
    loss: Literal["cross-entropy", "dlr"] = "cross-entropy",
    steps: PositiveInt | None = None,
    restarts: PositiveInt | None = None,
    written: Written,
    session: Session,
) -> int:
    """Change a picture a little, so that a classifier takes it for something else.

    What the classifier makes of the picture is printed, before and after; after is with the colours that the file
    has, of 8 bits. To test how safe a classifier of yours is, not to fool that of others.

    Args:
        image: The picture.
        classifier: What makes logits of a picture in [0, 1]: a module of a Python file, or what makes one there;
            or a file of torch.export.save (.pt2) or torch.jit.save. The file is run. Pictures have the shape (1,
            channels, height, width), logits (1, classes).
        label: Class that the picture is of; default: what the classifier says.
        target: Class that it is to be taken for, other than what the classifier says; default: any other.
        method: How to search; apgd is the strongest.
        norm: What the distance from the picture is: the largest change of a number, or the root of their squares'
            sum.
        epsilon: The largest distance, where white is 1; default: 0.0314, 8 of 255 levels, or 0.5 with l2.
        loss: What to raise; dlr has a gradient also where the classifier is very sure.
        steps: Gradients to take; default: 20. fgsm takes one.
        restarts: For pgd and apgd: how often to search, each time from another point; default: once.
        written: What to write.
        session: Random numbers, and the device.

    Example:
        genimg-fast edit adversarial cat.png --classifier mine.py:net
        genimg-fast edit adversarial cat.png --classifier net.pt --target 3 --epsilon 0.05 --method apgd
    """
    device = session.find_device()
    if label is not None and target is not None:
        raise OptionError("label", "must be left out with a target")
    out = Path(written.out or f"{image.stem}-adversarial.png")
    with blaming("out", (OSError, ValueError)):
        check_ending(out)
        if not out.parent.is_dir():
            raise ValueError(f"{str(out.parent)!r} must be a folder that is there")
        if out.suffix.lower() in (".jpg", ".jpeg", ".webp"):
            raise ValueError(f"{str(out)!r} must be of a format that keeps every pixel, such as .png")
    with blaming("image", (OSError, ValueError)):
        before = load_picture(image).to(device)
    colours = before[None, : 1 if len(before) < 3 else 3]
    with blaming("classifier"):
        model = _load(classifier).to(device)
    for module in model.modules():  # not model.eval(), which exported programs refuse
        module.training = False
    wanted = target if target is not None else label
    labels = None if wanted is None else torch.tensor([wanted], device=device)
    try:
        class_before, said_before = _prediction(model, colours)
        if target is not None and target == class_before:
            raise OptionError("target", f"must be another class than {target}: the classifier says so already")
        sample = attack(
            model, colours, labels, method=method, norm=norm, epsilon=epsilon, targeted=target is not None,
            loss=loss, steps=steps, restarts=restarts, generator=session.generator(),
        )  # fmt: skip
    except ValueError as error:
        name, _, message = str(error).partition(" ")
        if name == "labels":
            raise OptionError("label" if target is None else "target", message) from error
        if name == "model":
            raise OptionError("classifier", message) from error
        raise
    except RuntimeError as error:  # of the model's layers
        if is_out_of_memory(error):
            raise
        raise OptionError("classifier", f"does not take this picture: {error}") from error
    after = (sample * 255).round() / 255
    result = torch.cat([after[0], before[-1:]]) if len(before) in (2, 4) else after[0]
    with blaming("out", (OSError, ValueError)):
        save_picture(before_and_after(before, result) if written.before_after else result, out)
    say(f"before: {said_before}")
    say(f"after: {_prediction(model, after)[1]}")
    print(out)
    return 0


def _load(classifier: str) -> torch.nn.Module:
    path, _, name = classifier.rpartition(":")
    if path.endswith(".py"):
        run_file(path)
        found = getattr(sys.modules[Path(path).resolve().stem], name, None)
        if not isinstance(found, torch.nn.Module) and callable(found):
            found = found()
        if not isinstance(found, torch.nn.Module):
            raise ValueError(f"{path} has no torch.nn.Module named {name}, nor something that makes one")
        return found
    if classifier.endswith(".py"):
        raise ValueError(f"must be {classifier}:NAME, with the name of the module, or of what makes it")
    if not Path(classifier).is_file():
        raise ValueError(f"there is no file {classifier}")
    if classifier.endswith(".pt2"):
        return torch.export.load(classifier).module()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # such files are still about
            return torch.jit.load(classifier)
    except RuntimeError as error:
        raise ValueError(f"{classifier} is no file of torch.jit.save, nor FILE.py:NAME") from error


def _prediction(model: torch.nn.Module, picture: Tensor) -> tuple[int, str]:
    with torch.no_grad():
        logits = model(picture)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 1:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise OptionError("classifier", f"must return logits of shape (1, classes), got {got}")
    probability, label = logits[0].softmax(0).max(0)
    return int(label), f"class {int(label)}, probability {float(probability):.4f}"
