import json
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import genimg_fast as gf
from genimg_fast.cli import main
from genimg_fast.cli.evaluate import _labels

SMALL = ["--image-size", "8", "--z-dim", "4", "--batch-size", "8", "--channels", "2", "--device", "cpu"]
FIGURES = {"frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genimg_fast.metrics.estimates._MOST_OPERATIONS", 0)  # few resamples of Fréchet distances


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on digits, one that held some out, one on images without classes; digits and noise as files."""
    out = tmp_path_factory.mktemp("eval")
    digits = gf.data.load_dataset("digits", image_size=8)
    generator = torch.Generator().manual_seed(0)
    for index in range(60):
        pixels = {
            "classes": digits.images[index, 0],
            "plain": digits.images[100 + index, 0],
            "noise": torch.randint(256, (10, 12), generator=generator, dtype=torch.uint8),
        }
        for kind, image in pixels.items():
            folder = out / kind / (str(int(digits.labels[index]) % 2) if kind == "classes" else "")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.numpy()).save(folder / f"{index:02}.png")
    flags = [*SMALL, "--steps", "3", "--out", str(out)]
    assert main(["train", "dcgan", *flags]) == 0
    assert main(["train", "cvae", *flags, "--val-split", "0.1"]) == 0
    assert main(["train", "dcgan", *flags, "--data", str(out / "plain"), "--val-split", "0.25"]) == 0
    return out


def report_of(folder: Path, *command: object) -> dict:
    assert main(["eval", *map(str, command), "--out", str(folder), "--device", "cpu"]) == 0
    return json.loads((folder / "eval.json").read_text())


def test_a_run_on_images_of_classes(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"
    found = report_of(tmp_path, out / "00000-dcgan-digits", "--n", 40, "--cache", cache)
    lines = capsys.readouterr().out.splitlines()
    kept = [file.name.partition("-")[0] for file in sorted(cache.iterdir())]
    assert kept == ["classifier", "features", "features"]
    name = found["network"]
    assert lines[0].startswith(f"{name} of 10 classes reads 9")
    assert lines[0].endswith("right of 359 training images of digits that it has not seen")
    assert lines[1].startswith(f"dcgan against 899 training images of digits, by 64 features of: {name}")
    assert "  40 images are too few" in lines[2]
    assert found["images"] == 40
    assert found["frechet_distance_real"] < found["frechet_distance"]
    of = {"": "40 generated images", "_real": "898 other training images, the best to expect"}
    for figure, words in (("frechet_distance", "Fréchet distance"), ("precision", "precision")):
        for suffix, images in of.items():
            value = found[figure + suffix]
            low, high = found["intervals"][figure + suffix]
            assert low <= value <= high
            (line,) = (line for line in lines if f"  {words} of {images}" in line)
            shown, interval = line[:12].strip(), line[12:].partition("]")[0].strip(" [").split(", ")
            assert [float(each) for each in (shown, *interval)] == pytest.approx(
                [value, low, high], abs=1e-2 * high
            )
            assert len({len(each.partition(".")[2]) for each in (shown, *interval)}) == 1  # decimals
    assert {name + suffix for name in FIGURES for suffix in of} <= found["intervals"].keys()
    assert found["confidence"] == 0.95
    assert sum("Inception score of 40 generated images, of at most 10" in line for line in lines) == 1
    assert (tmp_path / "roc.png").is_file()
    assert 0 <= found["auc"] <= 1


def test_classes_that_were_asked_for(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = out / "00001-cvae-digits"
    found = report_of(tmp_path, run, "--n", 40, "--features", "random")
    assert found["network"] == "untrained network"
    assert 0 <= found["class_agreement"] <= 1
    assert len(found["class_agreement_by_class"]) == 10
    assert {"class_agreement", "class_variation"} <= found["intervals"].keys()
    printed = capsys.readouterr().out
    assert "cvae against 180 held-out images of digits, by 64 features of: untrained network" in printed
    assert "share of the requested class (classifier " in printed
    assert not (tmp_path / "roc.png").exists()
    (kept,) = run.glob("classifier-*.pt")  # beside the run, for the next time
    before = kept.stat().st_mtime_ns
    torch.rand(3)  # what came before plays no part
    assert report_of(tmp_path, run, "--n", 40, "--features", "random") == found
    assert kept.stat().st_mtime_ns == before


def test_a_run_on_images_without_classes(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report_of(tmp_path, out / "00002-dcgan-plain")
    lines = capsys.readouterr().out.splitlines()
    plain = out / "plain"
    assert lines[0] == f"{plain} has no classes for a classifier to learn: features of an untrained network"
    assert lines[1].startswith(
        f"dcgan against 15 held-out images of {plain}, by 64 features of: untrained network"
    )
    assert "15 images are too few: with no more than features, 64" in lines[2]
    assert "accuracy and area under the ROC curve" in lines[2]
    assert "of 15 training images, the best to expect" in "".join(lines)
    assert any("of 15 held-out images and 15 generated" in line for line in lines)
    assert "Inception score" not in "".join(lines)
    assert (found["network"], found["real_images_are"]) == ("untrained network", "held-out images")


def test_pictures_of_any_origin(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = report_of(tmp_path, "--samples", out / "noise", "--real", "digits")
    assert (
        f"{out / 'noise'} against 1797 real images of digits, all at 10x10, samples resized"
        in capsys.readouterr().out
    )
    assert (noise["images"], noise["image_size"]) == (60, 10)
    assert noise["network"].startswith("classifier ")
    command = ["--samples", out / "plain", "--real", "digits", "--cache", out / "00000-dcgan-digits"]
    plain = report_of(tmp_path, *command, "--image-size", 8)
    assert noise["frechet_distance"] > 3 * plain["frechet_distance"]
    assert plain["coverage"] > noise["coverage"]
    assert "class_agreement" not in plain  # nobody says which digits they are


def test_labelled_pictures_and_arrays(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = gf.data.load_dataset(out / "classes", image_size=8)
    grey = pictures.images[:, 0].numpy()
    shapes = {"grey": grey, "last": grey[..., None].repeat(3, 3), "first": grey[:, None].repeat(3, 1)}
    for name, array in shapes.items():
        numpy.savez(tmp_path / f"{name}.npz", arr_0=array, arr_1=pictures.labels.numpy())
        command = ["--samples", tmp_path / f"{name}.npz", "--real", out / "classes", "--features", "random"]
        found = report_of(tmp_path, *command)
        assert found["images"] == 60
        assert found["frechet_distance"] == pytest.approx(0, abs=1e-6)
        assert found["precision"] == 1
        assert found["class_agreement"] > 0.9
    assert "classes, all at 8x8, by" in capsys.readouterr().out


def test_published_features(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of torch-fidelity through folders of files, on untrained weights."""
    fidelity = pytest.importorskip("torch_fidelity")
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    weights = tmp_path / "weights.pth"
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        state = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).state_dict()
    torch.save({name: 2.5 * value if "conv" in name else value for name, value in state.items()}, weights)
    folders = {}
    for kind in ("plain", "noise"):
        folders[kind] = tmp_path / kind
        folders[kind].mkdir()
        for file in sorted((out / kind).iterdir())[:8]:
            Image.open(file).convert("RGB").crop((0, 0, 8, 8)).save(folders[kind] / file.name)
    theirs = fidelity.calculate_metrics(
        input1=str(folders["noise"]), input2=str(folders["plain"]), kid=True, prc=True, isc=True, isc_splits=1,
        samples_shuffle=False, kid_subset_size=8, kid_subsets=2, cuda=False, cache=False, verbose=False,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights), rng_seed=0,
    )  # fmt: skip
    monkeypatch.setattr("genimg_fast.metrics.estimates._FEWEST_RESAMPLES", 2)
    monkeypatch.setattr("genimg_fast.cli.evaluate._SPLITS", 1)
    found = report_of(
        tmp_path, "--samples", folders["noise"], "--real", folders["plain"], "--features", f"fidelity:{weights}"
    )
    assert found["kernel_distance"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert found["inception_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert (found["precision"], found["recall"]) == (theirs["precision"], theirs["recall"])
    printed = capsys.readouterr().out
    assert "features of: Inception v3 of torch-fidelity, other weights than published, " in printed
    assert "  FID of 8 samples and 8 real images" in printed
    assert "compare with published" not in printed


def test_the_classes_are_mixed_in_every_split_of_a_score() -> None:
    labels = _labels(gf.models.ConditionalDCGAN(10, 4, 1, 2, 1), 300, 0)
    assert labels is not None
    assert labels.bincount().tolist() == [30] * 10
    assert all(len(labels[split::10].unique()) > 7 for split in range(10))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["RUN", "--features", "inception"], "argument --weights: Inception v3 needs a file of weights"),
        (["RUN", "--features", "clasifier"], "argument --features: invalid choice: 'clasifier'; did you mean cl"),
        (["RUN", "--features", "fidelity:no.pth"], "argument --features: [Errno 2] No such file"),
        (["RUN", "--weights", "inception.pth"], "argument --weights: is for --features inception"),
        (["RUN", "--data", "nowhere"], "argument --data: 'nowhere' is neither"),
        (["RUN", "--n", "1"], "argument --n: must be an integer of at least 2"),
        (["RUN", "--device", "meta"], "argument --device: must be auto, cpu, cuda"),
        (["RUN", "--real", "digits"], "argument --real: is for --samples"),
        (["--samples", "PLAIN"], "argument --samples: needs real pictures to compare with: --real"),
        (["--samples", "PLAIN", "--real", "nowhere"], "argument --real: 'nowhere' is neither"),
        (["--samples", "RUN", "--real", "PLAIN", "--n", "9"], "argument --n: is for a RUN"),
        (["--samples", "empty.npz", "--real", "PLAIN"], "argument --samples: "),
        (["--samples", "PLAIN", "--real", "PLAIN", "--features", "classifier"], "--features: classifier needs"),
        ([], "argument RUN: must be given, or else --samples and --real"),
    ],
)  # fmt: skip
def test_bad_use_gives_one_line(
    flags: list[str], message: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_for = {"RUN": str(out / "00000-dcgan-digits"), "PLAIN": str(out / "plain")}
    with pytest.raises(SystemExit, match="2"):
        main(["eval", *(stand_for.get(flag, flag) for flag in flags)])
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert message in line
    assert "reads" not in printed.out  # no classifier was trained first


def test_a_classifier_that_reads_too_little(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genimg_fast.cli.evaluate._READABLE", 1.1)
    found = report_of(tmp_path, "--samples", out / "plain", "--real", out / "classes")
    assert found["network"] == "untrained network"
    printed = capsys.readouterr().out
    assert "has not seen: too few to judge by, so features of an untrained network\n" in printed
    assert "has no classes" not in printed


def test_classes_without_samples_are_null(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_of(tmp_path, out / "00001-cvae-digits", "--n", 6, "--features", "random")
    written = json.loads((tmp_path / "eval.json").read_text(), parse_constant=pytest.fail)
    assert written["class_agreement_by_class"].count(None) == 4
    assert "add about 0\n" not in capsys.readouterr().out
