from pathlib import Path

import pytest
from PIL import Image
from tiny_runs import PLAIN, image_size, png_names, side

from genimg_fast.cli import main

FOLDERS = ["{}/dark/0.png", "RUN", "--from", "{}/dark", "--to", "{}/light"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for folder, level in (("dark", 60), ("light", 200)):
        (tmp_path / folder).mkdir()
        for number in range(3):
            Image.new("RGB", (12, 9), (level + 10 * number,) * 3).save(tmp_path / folder / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("edit", "columns"),
    [
        (["project", "{}/dark/0.png", "RUN"], 2),
        (["vary", "{}/dark/0.png", "RUN", "--n", "3", "--strength", "0.3"], 5),
        (
            ["attribute", "{}/dark/0.png", "RUN", "--from", "{}/dark", "--to", "{}/light", "--strength", "0", "2"],
            3,
        ),
        (["attribute", "{}/dark/0.png", "RUN", "--from", "{}/dark", "--to", "{}/light", "--method", "linear"], 6),
        (["mix", "RUN", "--images", "{}/dark/0.png", "{}/light/1.png", "--weights", "1", "3"], 3),
    ],
)
@pytest.mark.parametrize("kind", ["gan", "vae"])
def test_edits_of_latents(
    edit: list[str], columns: int, kind: str, run: Path, vae_runs: dict[str, Path], pictures: Path, device: str
) -> None:
    folder = str(run if kind == "gan" else vae_runs["vae"])
    words = [folder if word == "RUN" else word.format(pictures) for word in edit]
    words += ["--steps", "3", "--device", device]
    assert main(["edit", *words, *PLAIN, "--out", str(pictures / "out.png")]) == 0
    assert image_size(pictures / "out.png") == (side(columns), side(1))
    if edit[0] != "project":
        assert main(["edit", *words, "--out", str(pictures / "files")]) == 0
        assert len(png_names(str(pictures / "files"))) == columns


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (["project", "{}/dark/0.png", "CVAE"], "argument --class: must be given: cvae is class-conditional"),
        (["project", "{}/none.png", "RUN"], "argument IMAGE: cannot read image"),
        (["vary", "{}/dark/0.png", "RUN", "--strength", "2"], "argument --strength: must be in [0, 1], got 2.0"),
        (["mix", "RUN", "--images", "{}/dark/0.png", "--weights", "1", "2"], "--weights: must be 1 numbers"),
        (["project", "{}/dark/0.png", "ROWS"], "argument RUN: model must have latents: a GAN, VAE"),
        (["attribute", *FOLDERS, "--from", "{}"], "argument --from: must hold images"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(
    edit: list[str], message: str, run: Path, vae_runs: dict[str, Path], sequence_runs: dict[str, Path],
    pictures: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    known = {"RUN": str(run), "CVAE": str(vae_runs["cvae"]), "ROWS": str(sequence_runs["row-rnn"])}
    with pytest.raises(SystemExit) as stopped:
        main(["edit", *(known.get(word) or word.format(pictures) for word in edit)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
