import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from genimg_fast._signatures import in_a_line, options_of
from genimg_fast.cli.arguments import Device, Parser, blaming
from genimg_fast.cli.commands import add_function
from genimg_fast.options import Decay, OptionError, PositiveInt, Reader


def draw(
    run: Path,
    *,
    missing: list[PositiveInt],
    n: PositiveInt | None = None,
    class_: str | None = None,
    betas: tuple[Decay, Decay] = (0.5, 0.9),
    mode: Literal["linear", "spherical"] = "linear",
    c_dim: Literal[1, 3] | None = None,
    rows: Annotated[range, Reader(lambda text: range(int(text)), "ROWS")] = range(2),
    plain: bool = False,
    device: Device = "auto",
    callback: Callable[[], None] | None = None,
) -> int:
    """Draw what a model makes.

    It is a picture, 100% of the time.

    Args:
        run: Run folder, or checkpoint.
        missing: Frames to make anew, counted from 1.
        n: Number of images. With more, it takes longer.
        class_: Class to draw, as :class:`genimg_fast.models.BaseGAN` knows it.
        betas: Decay rates of Adam.
        mode: ``"linear"``: straight on.
        c_dim: 1 for grey, 3 for colour.
        rows: That are given; 100% of them.
        plain: Whether to leave out names.
        device: Where.
        callback: Not for the command line.

    Example:
        genimg-fast draw runs/00000-dcgan-digits --missing 3
    """
    if n == 9:
        raise ValueError("n must be at most 8, got 9")
    if n == 10:
        raise OptionError("class_", "dcgan is not class-conditional")
    if n == 11:
        with blaming("run"):
            run.read_bytes()
    if missing == [7]:
        raise ValueError("missing[0] must be even, got 7")
    if n == 12:
        raise ValueError("n is no word of the user's: a mistake in the program")
    seen.append({"missing": missing, "n": n, "betas": betas, "c_dim": c_dim, "rows": rows, "plain": plain})
    return 3


seen: list[dict[str, Any]] = []


def call(*words: str) -> int:
    parser = Parser(prog="genimg-fast")
    add_function(parser.add_subparsers(), draw)
    args = parser.parse_args(["draw", *words])
    return args.execute(args)


def test_arguments_get_to_the_function() -> None:
    seen.clear()
    flags = ["--missing", "2", "3", "--n", "5", "--betas", "0.1", "0.2", "--c-dim", "3", "--rows", "4", "--plain"]
    assert call("here", *flags) == 3
    assert call("here", "--missing", "1") == 3
    assert seen == [
        {"missing": [2, 3], "n": 5, "betas": (0.1, 0.2), "c_dim": 3, "rows": range(4), "plain": True},
        {"missing": [1], "n": None, "betas": (0.5, 0.9), "c_dim": None, "rows": range(2), "plain": False},
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["r", "--missing", "0"], "argument --missing: must be an integer of at least 1, got '0'"),
        (
            ["r", "--missing", "1", "--betas", "1", "0"],
            "argument --betas: must be a number from 0 to below 1, got",
        ),
        (["r", "--missing", "1", "--betas", "0"], "argument --betas: expected 2 arguments"),
        (
            ["r", "--missing", "1", "--mode", "spheric"],
            "--mode: invalid choice: 'spheric'; did you mean spherical?",
        ),
        (["r", "--missing", "1", "--c-dim", "2"], "argument --c-dim: invalid choice: '2' (choose from 1, 3)"),
        (["r", "--mising", "1"], "unrecognized arguments: --mising 1; did you mean --missing?"),
        (["r"], "the following arguments are required: --missing"),
        (["--missing", "1"], "the following arguments are required: RUN"),
        (
            ["r", "--missing", "1", "--device", "abacus"],
            "argument --device: must be auto, cpu, cuda or cuda:<number>",
        ),
        (["r", "--missing", "1", "--n", "9"], "argument --n: must be at most 8, got 9"),
        (["r", "--missing", "1", "--n", "10"], "argument --class: dcgan is not class-conditional"),
        (
            ["nowhere", "--missing", "1", "--n", "11"],
            "argument RUN: [Errno 2] No such file or directory: 'nowhere'",
        ),
        (["r", "--missing", "7"], "argument --missing: must be even, got 7"),
    ],
)
def test_an_error_is_one_line_with_the_flag(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        call(*words)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("genimg-fast draw: error: ")
    assert message in line
    assert line.endswith("(see genimg-fast draw --help)")


def test_an_error_of_the_program_is_not_one_of_its_user() -> None:
    with pytest.raises(ValueError, match="a mistake in the program"):
        call("r", "--missing", "1", "--n", "12")


def test_help_is_what_the_docstring_says(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        call("--help")
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "Draw what a model makes. It is a picture, 100% of the time.",
        "RUN run folder, or checkpoint",
        "--missing N [N ...] frames to make anew, counted from 1",
        "--n N number of images --class TEXT class to draw, as models.BaseGAN knows it",
        "--betas X X decay rates of Adam (default: [0.5, 0.9])",
        "--mode {linear,spherical} linear: straight on (default: linear)",
        "--rows ROWS that are given; 100% of them",
        "--plain leave out names",
        "examples: genimg-fast draw runs/00000-dcgan-digits --missing 3",
    ):
        assert part in text
    assert "callback" not in text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Adam's rates, see Kingma et al. 2014, https://a.b/c.d. More.", "Adam's rates, see Kingma et al. 2014, https://a.b/c.d"),
        ("RGB images.", "RGB images"),
        ("Whether it is. Or\nnot.", "it is"),
        ("At least\n    0.5: ``x``.", "at least 0.5: x"),
        ("", ""),
    ],
)  # fmt: skip
def test_a_line_of_a_docstring(text: str, line: str) -> None:
    assert in_a_line(text) in (line, line[0].lower() + line[1:] if line else "")


def test_a_parameter_that_no_flag_can_set_needs_a_default() -> None:
    def broken(model: Callable[[], None], *, n: int = 1) -> int:
        return 0

    assert list(options_of(broken)) == ["n"]
    with pytest.raises(TypeError, match="broken: no argument can be of the type of model"):
        add_function(argparse.ArgumentParser().add_subparsers(), broken)


def test_a_tuple_of_several_types_is_no_option() -> None:
    def pairs(*, same: tuple[int, int] = (1, 2), mixed: tuple[int, float] = (1, 2.0)) -> int:
        return 0

    assert list(options_of(pairs)) == ["same"]


def test_a_class_has_the_help_of_its_base_class() -> None:
    class Base:
        """Do something.

        Args:
            n: Number of images.
        """

        def __init__(self, n: int = 1, _seen: int = 2) -> None: ...

    class Derived(Base):
        """Do something else."""

    assert {name: option.help for name, option in options_of(Derived).items()} == {"n": "number of images"}


def test_a_type_of_options_is_short_where_it_is_shown() -> None:
    assert repr(PositiveInt) == "typing.Annotated[int, integers(1)]"
    assert repr(Decay) == "typing.Annotated[float, numbers('from 0 to below 1')]"


def test_none_among_choices_makes_an_option_optional() -> None:
    def norm(*, kind: Literal["batch", None] = None) -> int:
        return 0

    assert options_of(norm)["kind"].optional
    assert options_of(norm)["kind"].takes()[1] == ("batch",)


def test_a_default_is_a_value_not_a_text() -> None:
    def shout(*, word: Annotated[str, Reader(lambda text: text + "!", "WORD")] = "well") -> int:
        return len(word)

    parser = Parser()
    add_function(parser.add_subparsers(), shout)
    for words, length in ([], 4), (["--word", "so"], 3):
        args = parser.parse_args(["shout", *words])
        assert args.execute(args) == length
