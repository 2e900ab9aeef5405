"""``genimg-fast train``."""

import argparse
import ctypes
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import genimg_fast as gf
from genimg_fast.cli.arguments import (
    Parser,
    add_command,
    add_data_root,
    add_scale,
    add_seed_and_device,
    at_least,
    conv_image_size,
    decay,
    not_negative,
    positive,
    probability,
    say,
)
from genimg_fast.data import (
    Augmented,
    BatchedDataset,
    FrameFolders,
    ImageDataset,
    load_dataset,
    load_pairs,
    load_sequences,
)
from genimg_fast.data.dataset import content_hash
from genimg_fast.data.sequences import TooFewFramesError
from genimg_fast.data.sources import UnreadableError, side_of_pairs
from genimg_fast.losses import GAN_LOSSES
from genimg_fast.models import CORES, LIKELIHOODS, create_model
from genimg_fast.models.checkpoint import CheckpointError
from genimg_fast.training import (
    AutoencoderTrainer,
    Callback,
    FrameFillerTrainer,
    FramePredictorTrainer,
    GANTrainer,
    GLOTrainer,
    MLflowLogger,
    Pix2PixTrainer,
    Recipe,
    RowRNNTrainer,
    RunFolder,
    TensorBoardLogger,
    Trainer,
    VAETrainer,
    WandbLogger,
    fit,
)
from genimg_fast.training.processes import gather_objects, process_group, rank, world_size
from genimg_fast.training.trainer import SCHEDULES

# What the GANs have for options beside those of all: text, defaults, and the options of the model itself. The demo
# and the evaluations train with the defaults, too: of the DCGANs, those of narrow networks with little noise to
# organise, which stand a high learning rate and make good digits on two cores in a minute or two.
_GANS: dict[str, tuple[str, dict[str, Any]]] = {
    "dcgan": ("Train a DCGAN.", {"norm": "batch", "z_dim": 20, "channels": 32, "lr": 5e-4, "steps": 1500}),
    "cdcgan": (
        "Train a class-conditional DCGAN.",
        {
            "norm": "batch",
            "condition": "concat",
            "z_dim": 32,
            "channels": 32,
            "lr": 4e-4,
            "steps": 3000,
            "schedule": "linear",
        },
    ),
    "wgan": (
        "Train a DCGAN whose critic has no batch norm, with a Wasserstein loss and gradient penalty.",
        {"norm": "none", "loss": "wasserstein", "gp": 10.0, "n_critic": 5, "betas": (0.0, 0.9)},
    ),
    "resgan": (
        "Train a GAN of residual blocks, with a Wasserstein loss and gradient penalty.",
        {"norm": "none", "loss": "wasserstein", "gp": 10.0, "n_critic": 5, "betas": (0.0, 0.9)},
    ),
    "mlp-gan": (
        "Train a GAN of fully connected layers.",
        {"z_dim": 20, "steps": 6000, "schedule": "linear"},
    ),
}
# Frames in a sequence, and pixels a side of either image of a pair, by default.
_USUAL_FRAMES, _USUAL_SIDE = 20, 256


def add(commands: Any) -> None:
    """Add the command, with a subcommand for each model."""
    train = add_command(commands, "train", fit_and_report, "Train a model; write a numbered run folder.")
    models = train.add_subparsers(title="models", dest="model", required=True)

    for name, (text, defaults) in _GANS.items():
        _add_gan(models, name, text, **defaults)
    _add_vaes(models)
    _add_row_rnn(models)
    _add_frame_models(models)
    _add_reconstruction(models)
    _add_pix2pix(models)


def _add_gan(
    models: Any,
    name: str,
    text: str,
    *,
    norm: str | None = None,
    condition: str | None = None,
    loss: str = "non_saturating",
    gp: float = 0.0,
    n_critic: int = 1,
    betas: tuple[float, float] = (0.5, 0.999),
    z_dim: int = 100,
    channels: int = 64,
    lr: float = 2e-4,
    steps: int = 2000,
    schedule: str = "constant",
) -> None:
    convolutional = name != "mlp-gan"
    wide = " --channels 64 --z-dim 100 --lr 2e-4" if channels == 32 else ""
    gan = add_command(models, name, fit_and_report, text, f"""
        genimg-fast train {name} --data digits
        genimg-fast train {name} --data photos/ --image-size 64{wide} --precision bf16 --channels-last
        genimg-fast train {name} --data digits --schedule constant --steps 5000 --resume auto
    """)  # fmt: skip
    gan.set_defaults(model_args=_gan_args, trainer=GANTrainer, trainer_args=_gan_trainer_args)
    if convolutional:
        _add_data(gan, conv_image_size, "pixels a side: 8, 16, 32, 64 ...", 32)
    else:
        _add_data(gan, at_least(1), "pixels a side", 28)
    group = _add_model(
        gan, z_dim=z_dim, z_help="length of a noise vector", channels=channels if convolutional else None
    )
    if norm is not None:
        choices = ["batch", "spectral", "none"] if norm == "batch" else ["none", "spectral"]
        group.add_argument("--norm", choices=choices, default=norm, help="of the discriminator")
    if condition is not None:
        group.add_argument("--condition", choices=["concat", "projection"], default=condition,
                           help="how the discriminator sees the class")  # fmt: skip
    if not convolutional:
        group.add_argument("--hidden", type=at_least(1), nargs="+", metavar="N", default=[256, 512],
                           help="widths of the generator's hidden layers")  # fmt: skip
    group = _add_training(gan, lr=lr, lr_help="learning rate of Adam", steps=steps, schedule=schedule)
    group.add_argument("--lr-d", type=positive, metavar="X", help="of the discriminator; default: --lr")
    group.add_argument("--betas", type=decay, nargs=2, metavar="X", default=list(betas),
                       help="decay rates of Adam")  # fmt: skip
    group.add_argument("--loss", choices=list(GAN_LOSSES), default=loss, help="adversarial loss")
    group.add_argument("--label-smoothing", type=probability, metavar="X", default=0.0,
                       help="how far the label of real images lies below 1")  # fmt: skip
    group.add_argument("--n-critic", type=at_least(1), metavar="N", default=n_critic,
                       help="steps of the discriminator for one of the generator")  # fmt: skip
    group.add_argument("--gp", type=not_negative, metavar="X", default=gp,
                       help="weight of the gradient penalty; clipped weights go without")  # fmt: skip
    group.add_argument("--r1", type=not_negative, metavar="X", default=0.0,
                       help="weight of the penalty on the gradient at real images")  # fmt: skip
    group.add_argument("--clip-weights", type=not_negative, metavar="X", default=0.0,
                       help="largest magnitude of the discriminator's weights; 0: any")  # fmt: skip
    _add_output(gan)


def _add_vaes(models: Any) -> None:
    for name, text in (
        ("vae", "Train a convolutional VAE."),
        ("cvae", "Train a convolutional VAE whose encoder and decoder know the class of an image."),
    ):
        vae = add_command(models, name, fit_and_report, text, f"""
            genimg-fast train {name} --data digits
            genimg-fast train {name} --data digits --likelihood bernoulli --z-dim 20
            genimg-fast train {name} --data photos/ --image-size 64 --warmup 500 --free-bits 0.1
        """)  # fmt: skip
        vae.set_defaults(model_args=_vae_args, trainer=VAETrainer, trainer_args=_vae_trainer_args)
        _add_data(vae, conv_image_size, "pixels a side: 8, 16, 32, 64 ...", 32)
        _add_model(vae, z_dim=10, z_help="length of a latent vector", channels=32)
        _add_vae(vae)

    mlp = add_command(models, "mlp-vae", fit_and_report, "Train a VAE of fully connected layers.", """
        genimg-fast train mlp-vae --data mnist --download --likelihood bernoulli --z-dim 20
        genimg-fast train mlp-vae --data digits --image-size 8 --hidden 256 128 --z-dim 10
    """)  # fmt: skip
    mlp.set_defaults(model_args=_mlp_vae_args, trainer=VAETrainer, trainer_args=_vae_trainer_args)
    _add_data(mlp, at_least(1), "pixels a side", 28)
    group = _add_model(mlp, z_dim=10, z_help="length of a latent vector")
    group.add_argument("--hidden", type=at_least(1), nargs="+", metavar="N", default=[400],
                       help="widths of the encoder's hidden layers; the decoder has them in reverse")  # fmt: skip
    _add_vae(mlp)


def _add_row_rnn(models: Any) -> None:
    rows = add_command(models, "row-rnn", fit_and_report, "Train an RNN that makes images row by row.", """
        genimg-fast train row-rnn --data digits
        genimg-fast train row-rnn --data mnist --download --image-size 28 --cell gru --components 40
    """)  # fmt: skip
    rows.set_defaults(model_args=_row_rnn_args, trainer=RowRNNTrainer, trainer_args=_sequence_trainer_args)
    _add_data(rows, at_least(1), "pixels a side", 16)
    group = rows.add_argument_group("model")
    _add_recurrent(group, hidden_size=256, hidden_help="length of the state")
    group.add_argument("--cell", choices=["gru", "lstm", "rnn"], default="lstm", help="kind of recurrent layer")
    group.add_argument("--components", type=at_least(1), metavar="N", default=30,
                       help="components of the mixture that a row is drawn from")  # fmt: skip
    _add_training(rows, lr=3e-3, lr_help="learning rate of Adam", steps=1500)
    _add_output(rows)


def _add_frame_models(models: Any) -> None:
    predictor = add_command(models, "frame-predictor", fit_and_report, "Train a predictor of the next frame.", """
        genimg-fast train frame-predictor --data moving-digits
        genimg-fast train frame-predictor --data clips/ --frames 16 --core lstm --hidden-size 256
        genimg-fast train frame-predictor --data film.mp4 --image-size 64 --reach 4 --batch-size 8
    """)  # fmt: skip
    predictor.set_defaults(
        model_args=_frame_model_args, trainer=FramePredictorTrainer, trainer_args=_predictor_trainer_args,
        picture="predictions-{:06d}.gif",
    )  # fmt: skip
    _add_frame_model(predictor, hidden_size=64)
    group = _add_training(predictor, lr=3e-3, lr_help="learning rate of Adam", steps=1000, batch_size=16)
    group.add_argument("--context", type=at_least(1), metavar="N",
                       help="frames that are always given; default: half of them")  # fmt: skip
    group.add_argument("--teacher-forcing", type=probability, metavar="P", default=0.0,
                       help="probability, at last, that the true frame goes in behind them")  # fmt: skip
    group.add_argument("--forcing-steps", type=at_least(0), metavar="N",
                       help="steps over which it falls from 1; default: all steps")  # fmt: skip
    _add_output(predictor)

    filler = add_command(models, "frame-filler", fit_and_report, "Train a model that fills in missing frames.", """
        genimg-fast train frame-filler --data moving-digits --speed 0.03 0.12
        genimg-fast train frame-filler --data clips/ --c-dim 1
    """)  # fmt: skip
    filler.set_defaults(
        model_args=_frame_model_args, trainer=FrameFillerTrainer, trainer_args=_sequence_trainer_args,
        picture="fillings-{:06d}.gif",
    )  # fmt: skip
    _add_frame_model(filler, hidden_size=32)
    _add_training(filler, lr=3e-3, lr_help="learning rate of Adam", steps=1000, batch_size=16)
    _add_output(filler)


def _add_reconstruction(models: Any) -> None:
    for name, text, trainer in (
        ("autoencoder", "Train an autoencoder.", AutoencoderTrainer),
        ("glo", "Train a generator together with a code for each image.", GLOTrainer),
    ):
        new = add_command(models, name, fit_and_report, text, f"genimg-fast train {name} --data digits --z-dim 20")
        new.set_defaults(
            model_args=_glo_args if name == "glo" else _dcgan_args, trainer=trainer,
            trainer_args=lambda args: {"lr": args.lr},
        )  # fmt: skip
        _add_data(new, conv_image_size, "pixels a side: 8, 16, 32, 64 ...", 32)
        new.set_defaults(picture="reconstructions-{:06d}.png")
        _add_model(new, z_dim=100, z_help="length of a code", channels=32)
        _add_training(new, lr=1e-3, lr_help="learning rate of Adam", steps=1500)
        _add_output(new)


def _add_pix2pix(models: Any) -> None:
    new = add_command(models, "pix2pix", fit_and_report, "Train a translator of images, on pairs.", """
        genimg-fast train pix2pix --data pairs/ --image-size 256
        genimg-fast train pix2pix --data maps/ --direction b2a --network resnet --channels 32
    """)  # fmt: skip
    new.set_defaults(
        model_args=_pix2pix_args, trainer=Pix2PixTrainer, load=_load_pairs, picture="translations-{:06d}.png",
        trainer_args=lambda args: {"direction": args.direction, "l1": args.l1, "loss": args.loss, "lr": args.lr},
        flip=False, shift=0, usual_image_size=_USUAL_SIDE,
    )  # fmt: skip
    group = new.add_argument_group("data")
    group.add_argument("--data", required=True, metavar="FOLDER",
                       help="images A|B side by side, or the subfolders A and B")  # fmt: skip
    group.add_argument("--image-size", type=conv_image_size, metavar="N",
                       help=f"pixels a side of A and of B: 8, 16, 32 ...; default: {_USUAL_SIDE}, or near to "
                            "that of smaller pairs")  # fmt: skip
    group.add_argument("--c-dim", type=int, choices=[1, 3], default=3, help="1 for grey, 3 for colour")
    _add_skip_broken(group)
    _add_held_out(group)
    group = new.add_argument_group("model")
    group.add_argument("--channels", type=at_least(1), metavar="N", default=64, help="feature channels")
    group.add_argument("--network", choices=["unet", "resnet"], default="unet", help="of the generator")
    group = _add_training(
        new, lr=2e-4, lr_help="learning rate of Adam", steps=20000, batch_size=8, schedule="constant"
    )
    group.add_argument("--direction", choices=["a2b", "b2a"], default="a2b", help="which half goes in")
    group.add_argument("--l1", type=not_negative, metavar="X", default=100.0,
                       help="weight of the mean absolute error")  # fmt: skip
    group.add_argument("--loss", choices=list(GAN_LOSSES), default="non_saturating", help="adversarial loss")
    _add_output(new)


def train_arguments(model: str, *flags: str) -> argparse.Namespace:
    """Get the arguments of ``genimg-fast train MODEL``, for programs that train with the same defaults.

    Example:
        >>> from genimg_fast.cli.train import train_arguments
        >>> train_arguments("vae", "--steps", "500").lr
        0.001
    """
    parser = Parser(prog="genimg-fast")
    add(parser.add_subparsers())
    args = parser.parse_args(["train", model, *flags])
    args.batch_size = args.batch_size or args.usual_batch_size
    return args


def fit_and_report(args: argparse.Namespace) -> int:
    """Train; see :func:`run_training`."""
    run_training(args)
    return 0


def run_training(args: argparse.Namespace) -> tuple[RunFolder, Trainer, Any]:
    """Train as the arguments say, in one or more processes, and print where everything is.

    Returns:
        The run folder, the trainer with the model it has trained, and the data set.
    """
    _keep_freed_memory()
    with process_group(args.device) as device:
        args.device = device
        return _run_training(args)


def _keep_freed_memory() -> None:
    """Let the C library keep up to 1 GiB that a step has freed for the next one, if it is glibc.

    It would give it back to the system, which clears it again: up to a tenth of a step of a DCGAN on the CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 32 << 20)  # the most that it takes
        mallopt(trim_threshold, 1 << 30)


def _run_training(args: argparse.Namespace) -> tuple[RunFolder, Trainer, Any]:
    parser: Parser = args.parser
    with parser.blaming("--backend"):
        gf.set_backend(args.backend)
    with parser.blaming("--data"):
        dataset, data_config = args.load(args)
    kind = "images" if isinstance(dataset, ImageDataset) else f"sequences of {args.frames} frames"
    dataset, validation, held_out_config = _hold_out(args, dataset)
    _fit_batch_size(args, dataset, kind)
    if args.model == "glo" and (args.flip or args.shift > 0):
        parser.error(f"argument {'--flip' if args.flip else '--shift'}: glo learns a code for each image as it is")
    if args.cuda_graph and args.device.type != "cuda":
        parser.error(f"argument --cuda-graph: needs a GPU of NVIDIA's, and training is on {args.device}")
    if args.cuda_graph and world_size() > 1:
        parser.error(f"argument --cuda-graph: is for one process, and there are {world_size()}")
    if args.batch_size % args.accumulate != 0:
        parser.error(f"argument --accumulate: must divide {args.batch_size}, the batch size")
    if not isinstance(dataset, ImageDataset) and args.reach >= args.image_size:
        parser.error(f"argument --reach: must be below {args.image_size}, the image size, got {args.reach}")
    if not isinstance(dataset, ImageDataset) and (getattr(args, "context", None) or 1) >= args.frames:
        parser.error(f"argument --context: must be below {args.frames}, the number of frames, got {args.context}")

    loggers: dict[str, Callable[[], Callback]] = {
        "tensorboard": TensorBoardLogger, "wandb": WandbLogger, "mlflow": MLflowLogger
    }  # fmt: skip
    callbacks = [logger() for name, logger in loggers.items() if getattr(args, name)]
    trainer = make_trainer(args, dataset)
    if rank() == 0 and args.model_args(args, dataset).get("num_classes") == 1:
        say(f"{args.model} on one class only, {dataset.class_names[0]}: subfolders make classes")
    config = {
        "model": args.model,
        "model_args": args.model_args(args, dataset),
        "data": args.data,
        **data_config,
        **held_out_config,
        "image_size": args.image_size,
        **args.trainer_args(args),
        "recipe": asdict(_recipe(args)),
        "sync_batch_norm": args.sync_batch_norm,
        "batch_size": args.batch_size,
        "processes": world_size(),
        "steps": args.steps,
        "seed": args.seed,
        "device": str(args.device),
        "backend": args.backend,
        "versions": {"genimg_fast": gf.__version__, "torch": str(torch.__version__)},
    }
    if isinstance(dataset, ImageDataset) and (args.flip or args.shift > 0):
        with parser.blaming("--shift"):
            dataset = Augmented(dataset, flip=args.flip, shift=args.shift)

    run, resume = _open_run(args, config)
    run.scale = args.scale
    torch.manual_seed(args.seed + rank())  # each process draws its own noise
    if rank() == 0:
        held_out = "" if validation is None else f" ({len(validation)} of {args.val_data or args.data} held out)"
        say(
            f"{args.model} on {len(dataset)} {kind} of {args.data}{held_out}, {args.device}, writing to {run.path}"
        )
    with parser.blaming("--resume", (CheckpointError,)):
        fit(
            trainer,
            dataset,
            steps=args.steps,
            batch_size=args.batch_size,
            seed=args.seed,
            validation=validation,
            run=run,
            log_every=args.log_every,
            val_every=args.val_every,
            sample_every=args.sample_every,
            checkpoint_every=args.checkpoint_every,
            progress=True,
            callbacks=callbacks,
            resume=resume,
        )
    if rank() == 0:
        picture = run.path / args.picture.format(trainer.steps_done)
        real = "held-out" if validation is not None else "training"
        of = "" if args.picture.startswith("samples") else f" of {real} {kind.split()[0]}"
        say(f"done: {f'{picture}{of}, ' if picture.is_file() else ''}checkpoint {run.checkpoint}")
    return run, trainer, dataset


def _hold_out(args: argparse.Namespace, dataset: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Get what to train on, what to validate on, if anything, and what config.json is to say about it."""
    parser: Parser = args.parser
    # What is not asked for is not written, so that runs of before can be resumed.
    if not args.val_split and args.val_data is None:
        return dataset, None, {}
    flag = "--val-split" if args.val_split else "--val-data"
    if args.model == "glo":
        parser.error(f"argument {flag}: glo has codes for the images that it trains on, and for no others")
    conditional = "num_classes" in args.model_args(args, dataset)
    if args.val_split:
        with parser.blaming(flag):
            training, held_out = dataset.split(args.val_split, seed=args.seed)
        config = {"val_split": args.val_split}
    else:
        if Path(args.val_data).resolve() == Path(args.data).resolve():
            parser.error(
                f"argument {flag}: {args.val_data} is the value of --data; --val-split holds a share of it out"
            )
        channels = dataset[torch.zeros(1, dtype=torch.int64)][0].shape[-3]
        with parser.blaming(flag):
            other = argparse.Namespace(**{**vars(args), "data": args.val_data, "c_dim": channels})
            held_out, read = args.load(other)
            if isinstance(dataset, ImageDataset):
                if conditional:
                    held_out = held_out.with_classes(dataset.class_names)
                if common := _count_common(dataset, held_out):
                    raise ValueError(f"{common} of its {len(held_out)} images are among those to train on, too")
        training, config = dataset, {"val_data": args.val_data, "val_sha256": read.get("sha256")}
    if conditional:
        empty = set(range(len(dataset.class_names))) - set(training.labels.tolist())
        if empty:
            parser.error(
                f"argument {flag}: leaves no image of class {dataset.class_names[min(empty)]} to train on"
            )
    return training, held_out, config


def _count_common(training: ImageDataset, held_out: ImageDataset) -> int:
    """Count held-out images that are, to the byte, training images as well."""
    known = {hash(image.numpy().tobytes()) for image in training.images}
    return sum(hash(image.numpy().tobytes()) in known for image in held_out.images)


def make_trainer(args: argparse.Namespace, dataset: Any) -> Any:  # a Trainer, and what its kind has beside
    """Make the model that the arguments describe, for the images or sequences of a data set, and its trainer."""
    torch.manual_seed(args.seed)
    model = create_model(args.model, **args.model_args(args, dataset))
    if args.sync_batch_norm:
        model = gf.nn.SyncBatchNormAct.convert_sync_batchnorm(model)
    # What else can be wrong, the types of arguments have seen.
    with args.parser.blaming("--gp, --r1, --label-smoothing"):
        return args.trainer(model.to(args.device), seed=args.seed, recipe=_recipe(args), **args.trainer_args(args))


def _fit_batch_size(args: argparse.Namespace, dataset: BatchedDataset, kind: str) -> None:
    """Take the default batch size, or as much of it as there is, unless another one is asked for."""
    number, most = len(dataset), len(dataset) // world_size()
    each = f" for each of {world_size()} processes" if world_size() > 1 else ""
    more = ""
    if isinstance(dataset, FrameFolders):
        more = "; with fewer --frames there are more of them"
    elif hasattr(args, "crops") and Path(args.data).is_dir():
        more = "; --crops cuts more from them"
    if args.batch_size is None:
        args.batch_size = min(args.usual_batch_size, most - most % args.accumulate)
        if args.batch_size < 2:  # batch norm needs two
            args.parser.error(f"argument --data: {number} {kind} in {args.data} are too few{each}{more}")
        if args.batch_size < args.usual_batch_size and rank() == 0:
            say(
                f"batch size {args.batch_size} instead of {args.usual_batch_size}: there are {number} {kind}{more}"
            )
    elif args.batch_size > most:
        args.parser.error(
            f"argument --batch-size: must be at most {most}, the number of {kind} in {args.data}{each}{more}"
        )


def _open_run(args: argparse.Namespace, config: dict[str, Any]) -> tuple[RunFolder, bool]:
    """Make the run's folder, or open it again; tell if there is something to go on with."""
    name = f"{args.model}-{Path(args.data).resolve().name}"
    with args.parser.blaming("--resume"):
        before = RunFolder.latest(args.out, name) if args.resume == "auto" else args.resume
        if before is not None:
            return RunFolder.reopen(before, config, names=args.parser.flags()), True
    with args.parser.blaming("--out"):
        # The first process makes the folder, the others hear of it.
        made = RunFolder.create(args.out, name, config).path if rank() == 0 else None
        return RunFolder(gather_objects(made)[0], config), False


def _recipe(args: argparse.Namespace) -> Recipe:
    return Recipe(
        precision=args.precision,
        channels_last=args.channels_last,
        compile=args.compile,
        cuda_graph=args.cuda_graph,
        grad_clip=args.grad_clip,
        accumulate=args.accumulate,
        schedule=args.schedule,
        decay_steps=0 if args.schedule == "constant" else args.steps,
        ema=args.ema,
    )


@contextmanager
def _hinting_at_skip_broken() -> Iterator[None]:
    try:
        yield
    except UnreadableError as error:
        raise ValueError(f"{error}; --skip-broken leaves it out") from error


def _load_images(args: argparse.Namespace) -> tuple[ImageDataset, dict[str, Any]]:
    """Load images; return them and what config.json is to say about them."""
    with _hinting_at_skip_broken():
        dataset = load_dataset(
            args.data, image_size=args.image_size, channels=args.c_dim, root=args.data_root,
            download=args.download, crops=args.crops, seed=args.seed, skip_broken=args.skip_broken,
        )  # fmt: skip
    config = {
        "classes": dataset.class_names,
        "crops": args.crops,
        "flip": args.flip,
        "shift": args.shift,
        "skip_broken": args.skip_broken,
        "sha256": content_hash(dataset.images, dataset.labels),  # shows another data set when the run is resumed
    }
    if args.model == "glo":  # which tells images apart by their numbers
        return ImageDataset(dataset.images, torch.arange(len(dataset))), config
    return dataset, config


def _load_pairs(args: argparse.Namespace) -> tuple[ImageDataset, dict[str, Any]]:
    """Load pairs of images; return them and what config.json is to say about them."""
    if args.image_size is None:
        side = side_of_pairs(args.data) or _USUAL_SIDE
        args.image_size = min(_USUAL_SIDE, 2 ** max(3, round(math.log2(side))))
        if args.image_size < _USUAL_SIDE and rank() == 0:
            say(f"image size {args.image_size} instead of {_USUAL_SIDE}: the pairs have {side} pixels a side")
    with _hinting_at_skip_broken():
        dataset = load_pairs(
            args.data, image_size=args.image_size, channels=args.c_dim, skip_broken=args.skip_broken
        )
    return dataset, {"skip_broken": args.skip_broken, "sha256": content_hash(dataset.images)}


def _load_sequences(args: argparse.Namespace) -> tuple[BatchedDataset, dict[str, Any]]:
    """Load sequences; return them and what config.json is to say about them."""
    if len(args.speed) > 2:
        args.parser.error(f"argument --speed: takes one number or two, got {len(args.speed)}")
    speed = (min(args.speed), max(args.speed))

    def load(frames: int) -> BatchedDataset:
        return load_sequences(
            args.data, frames=frames, image_size=args.image_size, channels=args.c_dim, speed=speed, seed=args.seed
        )

    with args.parser.blaming("--frames", (TooFewFramesError,)):
        try:
            dataset = load(args.frames or _USUAL_FRAMES)
        except TooFewFramesError as error:
            if args.frames is not None or error.longest < 2:
                raise
            args.frames = error.longest
            dataset = load(args.frames)
            if rank() == 0:
                say(f"sequences of {args.frames} frames instead of {_USUAL_FRAMES}: no clip is longer (--frames)")
        args.frames = args.frames or _USUAL_FRAMES
    config = {"frames": args.frames, "speed": list(speed)}
    if isinstance(dataset, FrameFolders):  # moving digits follow from the settings
        config["sha256"] = content_hash(*dataset.clips.values())
    return dataset, config


def _dcgan_args(args: argparse.Namespace, dataset: ImageDataset) -> dict[str, Any]:
    return {
        "z_dim": args.z_dim,
        "c_dim": dataset.images.shape[1],
        "channels": args.channels,
        "n_blocks": int(math.log2(args.image_size // 4)),
    }


def _gan_args(args: argparse.Namespace, dataset: ImageDataset) -> dict[str, Any]:
    if args.model == "mlp-gan":
        sizes = {"c_dim": dataset.images.shape[1], "image_size": args.image_size}
        return {"z_dim": args.z_dim, **sizes, "hidden": args.hidden}
    conditional = {}
    if args.model == "cdcgan":
        conditional = {"num_classes": len(dataset.class_names), "condition": args.condition}
    return {**conditional, **_dcgan_args(args, dataset), "norm": args.norm}


def _pix2pix_args(args: argparse.Namespace, dataset: ImageDataset) -> dict[str, Any]:
    channels = dataset.images.shape[1]
    return {
        "in_channels": channels,
        "out_channels": channels,
        "channels": args.channels,
        "image_size": args.image_size,
        "network": args.network,
    }


def _glo_args(args: argparse.Namespace, dataset: ImageDataset) -> dict[str, Any]:
    return {"num_images": len(dataset), **_dcgan_args(args, dataset)}


def _vae_args(args: argparse.Namespace, dataset: ImageDataset) -> dict[str, Any]:
    classes = {"num_classes": len(dataset.class_names)} if args.model == "cvae" else {}
    return {**classes, **_dcgan_args(args, dataset), "likelihood": args.likelihood}


def _mlp_vae_args(args: argparse.Namespace, dataset: ImageDataset) -> dict[str, Any]:
    return {
        "z_dim": args.z_dim,
        "c_dim": dataset.images.shape[1],
        "image_size": args.image_size,
        "hidden": args.hidden,
        "likelihood": args.likelihood,
    }


def _row_rnn_args(args: argparse.Namespace, dataset: ImageDataset) -> dict[str, Any]:
    return {
        "c_dim": dataset.images.shape[1],
        "image_size": args.image_size,
        "hidden_size": args.hidden_size,
        "num_layers": args.num_layers,
        "cell": args.cell,
        "components": args.components,
    }


def _frame_model_args(args: argparse.Namespace, dataset: BatchedDataset) -> dict[str, Any]:
    frames, _ = dataset[torch.zeros(1, dtype=torch.int64)]
    return {
        "c_dim": frames.shape[2],
        "channels": args.channels,
        "n_blocks": int(math.log2(args.image_size // 4)),
        "core": args.core,
        "hidden_size": args.hidden_size,
        "num_layers": args.num_layers,
        "reach": args.reach,
    }


def _gan_trainer_args(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "loss": args.loss,
        "label_smoothing": args.label_smoothing,
        "lr": args.lr,
        "lr_d": args.lr_d,
        "betas": args.betas,
        "n_critic": args.n_critic,
        "gp": 0.0 if args.clip_weights > 0 else args.gp,
        "r1": args.r1,
        "clip_weights": args.clip_weights,
    }


def _vae_trainer_args(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "lr": args.lr,
        "beta": (10.0 if args.likelihood == "gaussian" else 1.0) if args.beta is None else args.beta,
        "warmup": args.warmup,
        "free_bits": args.free_bits,
    }


def _sequence_trainer_args(args: argparse.Namespace) -> dict[str, Any]:
    return {"lr": args.lr}


def _predictor_trainer_args(args: argparse.Namespace) -> dict[str, Any]:
    return {
        **_sequence_trainer_args(args),
        "context": args.context,
        "teacher_forcing": args.teacher_forcing,
        "forcing_steps": args.steps if args.forcing_steps is None else args.forcing_steps,
    }


def _add_data(parser: Parser, size: Callable[[str], int], size_help: str, default_size: int) -> None:
    parser.set_defaults(load=_load_images, picture="samples-{:06d}.png")
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data", default="digits", metavar="NAME|FOLDER",
        help="digits, photos, mnist, fashion-mnist, cifar10, or a folder of images or IDX files",
    )  # fmt: skip
    group.add_argument("--image-size", type=size, metavar="N", default=default_size, help=size_help)
    group.add_argument(
        "--c-dim", type=int, choices=[1, 3], help="1 for grey, 3 for colour; default: the data's own"
    )
    add_data_root(group)
    group.add_argument("--crops", type=at_least(0), metavar="N", default=0,
                       help="cut N squares at random from the images, instead of resizing them")  # fmt: skip
    group.add_argument("--flip", action="store_true", help="mirror images at random")
    group.add_argument("--shift", type=at_least(0), metavar="N", default=0,
                       help="move images at random, by up to N pixels")  # fmt: skip
    _add_skip_broken(group)
    _add_held_out(group)


def _add_held_out(group: argparse._ArgumentGroup) -> None:
    one = group.add_mutually_exclusive_group()
    one.add_argument("--val-split", type=decay, metavar="SHARE",
                     help="hold this share of the data out, for val_loss, pictures and eval")  # fmt: skip
    one.add_argument("--val-data", metavar="NAME|FOLDER", help="other data to hold out, of the kind of --data")


def _add_skip_broken(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--skip-broken", action="store_true", help="leave out files that cannot be read")


def _add_recurrent(group: argparse._ArgumentGroup, *, hidden_size: int, hidden_help: str) -> None:
    group.add_argument("--hidden-size", type=at_least(1), metavar="N", default=hidden_size, help=hidden_help)
    group.add_argument("--num-layers", type=at_least(1, 1000), metavar="N", default=2, help="recurrent layers")


def _add_frame_model(parser: Parser, *, hidden_size: int) -> None:
    """Add the data and the model of frame models."""
    parser.set_defaults(load=_load_sequences, usual_frames=_USUAL_FRAMES)
    group = parser.add_argument_group("data")
    group.add_argument("--data", default="moving-digits", metavar="NAME|FOLDER|FILE",
                       help="moving-digits, a folder of numbered frames or of clips, a video, a GIF")  # fmt: skip
    group.add_argument("--frames", type=at_least(2, 100_000), metavar="N",
                       help=f"frames in a sequence; default: {_USUAL_FRAMES}, or all there are")  # fmt: skip
    group.add_argument("--image-size", type=conv_image_size, metavar="N", default=32,
                       help="pixels a side: 8, 16, 32, 64 ...")  # fmt: skip
    group.add_argument("--c-dim", type=int, choices=[1, 3],
                       help="1 for grey, 3 for colour; default: 1 for moving digits, 3 for files")  # fmt: skip
    group.add_argument("--speed", type=probability, nargs="+", metavar="X", default=[0.1],
                       help="way of moving digits in a frame, as a share of their room; two: a range")  # fmt: skip
    _add_held_out(group)
    group = parser.add_argument_group("model")
    group.add_argument("--core", choices=CORES, default="convlstm", help="recurrent network between frames")
    group.add_argument("--channels", type=at_least(1), metavar="N", default=32,
                       help="feature channels at half the resolution")  # fmt: skip
    _add_recurrent(group, hidden_size=hidden_size, hidden_help="channels, or length, of the core's state")
    group.add_argument("--reach", type=at_least(0), metavar="N", default=2,
                       help="pixels that something can move in a frame; 0: make every pixel anew")  # fmt: skip


def _add_model(parser: Parser, *, z_dim: int, z_help: str, channels: int | None = None) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("model")
    group.add_argument("--z-dim", type=at_least(1), metavar="N", default=z_dim, help=z_help)
    if channels is not None:
        group.add_argument("--channels", type=at_least(1), metavar="N", default=channels,
                           help="feature channels at half the resolution")  # fmt: skip
    return group


def _add_vae(parser: Parser) -> None:
    group = _add_training(parser, lr=1e-3, lr_help="learning rate of Adam", steps=1000)
    group.add_argument("--likelihood", choices=LIKELIHOODS, default="gaussian",
                       help="p(x|z); mse: gaussian with variance 1, not learned")  # fmt: skip
    # A few thousand images teach so small a variance that every latent becomes a detailed code, and few samples of
    # the prior hit one. A heavier KL term keeps the codes together.
    group.add_argument("--beta", type=not_negative, metavar="X",
                       help="weight of the KL term; default: 10 with a gaussian likelihood, else 1")  # fmt: skip
    group.add_argument("--warmup", type=at_least(0), metavar="N", default=0,
                       help="steps over which that weight rises from 0")  # fmt: skip
    group.add_argument("--free-bits", type=not_negative, metavar="X", default=0.0,
                       help="nats of KL per latent dimension that cost no more than less would")  # fmt: skip
    _add_output(parser)


def _add_training(
    parser: Parser, *, lr: float, lr_help: str, steps: int, batch_size: int = 64, schedule: str = "cosine"
) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("training")
    group.add_argument(
        "--steps",
        type=at_least(1),
        metavar="N",
        default=steps,
        help="steps to train; a resumed run may have more if nothing in it depends on their number",
    )
    parser.set_defaults(usual_batch_size=batch_size)
    group.add_argument("--batch-size", type=at_least(2), metavar="N",
                       help=f"images, or sequences, in a batch of each process; default: {batch_size}, "
                            "or all if there are fewer")  # fmt: skip
    group.add_argument("--lr", type=positive, metavar="X", default=lr, help=lr_help)
    group.add_argument("--schedule", choices=SCHEDULES, default=schedule,
                       help="course of the learning rate, down to 0 at the last step")  # fmt: skip
    group.add_argument("--ema", type=decay, metavar="X", default=0.999,
                       help="decay of the average of the weights that samples come from; 0: none")  # fmt: skip
    group.add_argument("--grad-clip", type=not_negative, metavar="X", default=0.0,
                       help="largest norm of a network's gradient; 0: any")  # fmt: skip
    group.add_argument("--accumulate", type=at_least(1), metavar="N", default=1,
                       help="parts that a batch is cut into to save memory")  # fmt: skip
    add_seed_and_device(group)
    speed = parser.add_argument_group("speed")
    speed.add_argument("--backend", choices=["auto", "native", "reference"], default=gf.get_backend(),
                       help="fused kernels where they pay, always, or never")  # fmt: skip
    speed.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="of autocast")
    speed.add_argument("--channels-last", action="store_true", help="memory format of images and weights")
    speed.add_argument("--compile", action="store_true", help="run networks through torch.compile")
    speed.add_argument(
        "--cuda-graph", action="store_true", help="replay steps as CUDA graphs; needs --device cuda"
    )
    speed.add_argument("--sync-batch-norm", action="store_true",
                       help="batch statistics over all processes of torchrun")  # fmt: skip
    return group


def _add_output(parser: Parser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, metavar="FOLDER", default=Path("runs"), help="folder of all runs")
    group.add_argument("--resume", metavar="RUN|auto",
                       help="run folder to go on with; auto: newest of this model and data, if any")  # fmt: skip
    group.add_argument(
        "--log-every", type=at_least(1), metavar="N", default=20, help="steps between two rows of statistics"
    )
    add_scale(group)
    group.add_argument("--val-every", type=at_least(0), metavar="N", default=100,
                       help="steps between two evaluations on all held-out data; 0: at the end")  # fmt: skip
    group.add_argument("--tensorboard", action="store_true", help="write statistics for TensorBoard as well")
    group.add_argument("--wandb", action="store_true", help="send statistics and pictures to Weights & Biases")
    group.add_argument("--mlflow", action="store_true", help="send statistics and pictures to MLflow")
    group.add_argument("--sample-every", type=at_least(0), metavar="N", default=500,
                       help="steps between two sets of pictures; 0: at the end")  # fmt: skip
    group.add_argument("--checkpoint-every", type=at_least(0), metavar="N", default=500,
                       help="steps between two checkpoints; 0: at the end")  # fmt: skip
