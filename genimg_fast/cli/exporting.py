"""``genimg-fast export``."""

from pathlib import Path
from typing import Annotated

from genimg_fast.cli.arguments import blaming
from genimg_fast.cli.runs import load_with_settings
from genimg_fast.models import export as export_model
from genimg_fast.models.exporting import Format, PartName, choose_part, parts
from genimg_fast.options import OptionError, Reader, integers

_SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}


def _batch(text: str) -> int | None:
    return None if text == "dynamic" else integers(1).read(text)


def export(
    run: Path,
    *,
    to: Format,
    part: PartName | None = None,
    out: Annotated[Path, Reader(Path, "PATH")] | None = None,
    batch: Annotated[int, Reader(_batch, "dynamic|N")] | None = None,
) -> int:
    """Write a trained model as a program, or weights, for others to use.

    A program is run on random input, and its output compared with the model's, before it takes its place; the
    largest difference is printed.

    Args:
        run: Run folder, or checkpoint.
        to: onnx, for ONNX Runtime and others; torch-export, for torch.export.load; safetensors, a folder with the
            weights and the config, for this package and the Hugging Face hub.
        part: What to export as a program; default: the sampler, the translator or a2b.
        out: File to write, or folder for safetensors; default: PART.onnx, PART.pt2, or pretrained.
        batch: Number of images that the program takes at a time; default: dynamic, any.

    Example:
        genimg-fast export runs/00000-dcgan-digits --to onnx
        genimg-fast export runs/00001-vae-digits --to torch-export --part encoder --batch 1
        genimg-fast export runs/00001-vae-digits --to safetensors --out my-vae
    """
    model, config = load_with_settings(run)
    if to == "safetensors":
        if batch is not None:
            raise OptionError("batch", "is for programs, and safetensors hold the whole model")
        out = out or Path("pretrained")
    else:
        if not parts(model):
            raise OptionError("run", f"{config['model']} has no part that runs by itself, such as a sampler")
        part = choose_part(model, part)
        out = out or Path(f"{part}{_SUFFIXES[to]}")
    # Of weights, what does not fit is another model in the folder.
    unfit = (OSError, ValueError) if to == "safetensors" and part is None else (OSError,)
    with blaming("run", (RuntimeError,)), blaming("out", unfit):
        error = export_model(run if to == "safetensors" else model, out, to=to, part=part, batch=batch)
    print(f"largest difference from the model, on random input: {error:.1e}")
    print(out)
    return 0
