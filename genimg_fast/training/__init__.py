"""Training: the loop, what it trains, and the run folder it writes."""

from genimg_fast.training.gan import GANTrainer
from genimg_fast.training.loop import NonFiniteLossError, Trainer, fit
from genimg_fast.training.run import RunFolder, load_checkpoint, load_model, save_grid

__all__ = [
    "GANTrainer",
    "NonFiniteLossError",
    "RunFolder",
    "Trainer",
    "fit",
    "load_checkpoint",
    "load_model",
    "save_grid",
]
