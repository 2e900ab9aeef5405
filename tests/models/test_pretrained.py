import copy
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_models import SMALL_MODELS

import genimg_fast as gf
from genimg_fast.models import registry
from genimg_fast.training import GANTrainer, Recipe, RunFolder, fit

huggingface_hub = pytest.importorskip("huggingface_hub")  # of the extra

GAN = {"z_dim": 4, "c_dim": 1, "channels": 2, "n_blocks": 1}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose averaged weights differ from the others."""
    run = RunFolder.create(tmp_path, "dcgan-digits", {"model": "dcgan", "model_args": GAN, "classes": ["a"]})
    trainer = GANTrainer(gf.models.DCGAN(**GAN), recipe=Recipe(ema=0.5))
    fit(trainer, gf.data.load_dataset("digits", image_size=8), steps=3, batch_size=4, run=run)
    return run


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return a.state_dict().keys() == b.state_dict().keys() and all(
        torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items()
    )


@pytest.mark.parametrize("name", gf.models.list_models())
def test_every_model_comes_back(name: str, tmp_path: Path) -> None:
    model: Any = gf.models.create_model(name, **SMALL_MODELS[name])
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["model"] == name
    assert SMALL_MODELS[name].items() <= {key: as_given(v) for key, v in config["model_args"].items()}.items()
    for loaded in (type(model).from_pretrained(tmp_path / "model"), gf.models.load(str(tmp_path / "model"))):
        assert type(loaded) is type(model)
        assert equal(loaded, model)
        assert not loaded.training


def as_given(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_saved_like_the_model(copied: Any, tmp_path: Path) -> None:
    model = gf.models.WGAN(4, 1, channels=2, n_blocks=1).to(memory_format=torch.channels_last)
    copied(model).save_pretrained(tmp_path)
    assert equal(gf.models.DCGAN.from_pretrained(tmp_path), model)  # a WGAN is one


def test_of_a_run(run: RunFolder, tmp_path: Path) -> None:
    state = gf.training.load_checkpoint(run)
    for path in (run, run.path, str(run.path), run.path / "checkpoint.pt"):
        model = gf.models.load(path)
        averaged = {k.removeprefix("module."): v for k, v in state["ema"].items() if k.startswith("module.gen")}
        torch.testing.assert_close(
            {f"generator.{k}": v for k, v in model.generator.state_dict().items()}, averaged, rtol=0, atol=0
        )
        assert equal(gf.models.DCGAN.from_pretrained(path), model)
    assert not equal(model.generator, GANTrainer(gf.models.DCGAN(**GAN)).model.generator)

    with pytest.raises(ValueError, match="is the folder of a run, which has a model"):
        model.save_pretrained(run)
    assert not (run.path / "model.safetensors").exists()
    gf.models.DCGAN(**GAN).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(run.path / "model.safetensors")
    for loaded in (gf.models.DCGAN.from_pretrained(run), gf.models.load(run)):
        assert equal(loaded, model)  # the run's own


def test_what_else_there_is_to_say(tmp_path: Path) -> None:
    gf.models.DCGAN(**GAN).save_pretrained(tmp_path, config={"classes": ["cat"]})
    assert gf.training.load_run(tmp_path)[1]["classes"] == ["cat"]


def test_keyword_arguments_of_a_derived_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "_builders", {**registry._builders})

    @gf.models.register_model("mine")
    class Mine(gf.models.MLPGAN):
        def __init__(self, depth: int = 1, **options: Any) -> None:
            super().__init__(**options, hidden=depth * [4])

    Mine(2, z_dim=3).save_pretrained(tmp_path)
    assert Mine.from_pretrained(tmp_path).generator.z_dim == 3
    assert json.loads((tmp_path / "config.json").read_text())["model_args"] == {"depth": 2, "z_dim": 3}


def test_odd_states(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "_builders", {**registry._builders})

    @gf.models.register_model("tied")
    class Tied(gf.models.BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.a = self.b = gf.nn.Linear(2, 2)

    Tied().save_pretrained(tmp_path / "tied")
    loaded = Tied.from_pretrained(tmp_path / "tied")
    assert loaded.a is loaded.b

    @gf.models.register_model("counting")
    class Counting(Tied):
        def get_extra_state(self) -> int:
            return 1

    with pytest.raises(ValueError, match="holds whole, plain tensors, and _extra_state is of type int"):
        Counting().save_pretrained(tmp_path / "new")
    with pytest.raises(TypeError, match="not JSON serializable"):
        Tied().save_pretrained(tmp_path / "new", config={"classes": {1, 2}})
    assert not (tmp_path / "new").exists()


def another_model(folder: Path) -> None:
    gf.models.MLPGAN(**SMALL_MODELS["mlp-gan"]).save_pretrained(folder.parent / "other")
    (folder.parent / "other" / "model.safetensors").rename(folder / "model.safetensors")


def settings(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        config = {**json.loads((folder / "config.json").read_text()), **changes}
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return change


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (another_model, ValueError, "model.safetensors of .* does not fit its model, dcgan: .*Missing key"),
        (settings(model_args={**GAN, "z_dim": 5}), ValueError, "does not fit its model, dcgan: .*size mismatch"),
        (settings(model_args={"depth": 3}), ValueError, "does not fit its model, dcgan: .*'depth'"),
        (settings(model="dcgn"), ValueError, "unknown model 'dcgn'; did you mean dcgan"),
        (settings(model=None), ValueError, "does not say which model it is"),
        (settings(model_args=[1]), ValueError, r"damaged: model_args is \[1\]"),
        (lambda f: (f / "config.json").write_text("{"), ValueError, r"config\.json is damaged"),
        (lambda f: (f / "config.json").write_text("[]"), ValueError, r"config\.json is damaged: no settings"),
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, r"config\.json"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 99), ValueError, "model.safetensors is damaged"),
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "neither model.safetensors nor check"),
        (lambda f: f.rename(f.parent / "elsewhere"), FileNotFoundError, "no checkpoint at"),
    ],
)
def test_a_bad_folder_is_one_line(damage: Any, kind: type[Exception], message: str, tmp_path: Path) -> None:
    gf.models.DCGAN(**GAN).save_pretrained(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(kind, match=message) as error:
        gf.models.DCGAN.from_pretrained(tmp_path / "model")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_what_cannot_be_saved(run: RunFolder, tmp_path: Path) -> None:
    model = gf.models.DCGAN(**GAN)
    with pytest.raises(ValueError, match="holds another model: 'dcgan', or with other arg"):
        gf.models.DCGAN().save_pretrained(run)
    assert not (run.path / "model.safetensors").exists()
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="holds a DCGAN, not a BaseVAE"):
        gf.models.BaseVAE.from_pretrained(tmp_path / "model")

    class Unregistered(gf.models.DCGAN):
        pass

    with pytest.raises(ValueError, match="Unregistered has no name: decorate the class"):
        Unregistered().save_pretrained(tmp_path / "new")
    with pytest.raises(ValueError, match="an argument of this MLPGAN is nothing that JSON holds"):
        gf.models.MLPGAN(**{**SMALL_MODELS["mlp-gan"], "hidden": range(3, 5)}).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = gf.models.DCGAN(**GAN)
    model.save_pretrained(tmp_path / "cache")
    asked = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append((name, options))
        if name == "nobody/nothing":
            raise huggingface_hub.errors.LocalEntryNotFoundError("not\nthere")
        return str(tmp_path / "cache")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert equal(gf.models.DCGAN.from_pretrained("me/gan", revision="v1"), model)
    files = ["config.json", "model.safetensors"]
    assert asked == [("me/gan", {"allow_patterns": files, "revision": "v1"})]
    with pytest.raises(OSError, match="nobody/nothing is no folder here, and cannot be had from the hub: not"):
        gf.models.DCGAN.from_pretrained("nobody/nothing")
    asked.clear()
    for path in ("cache/gan", "gan", "./me/gan", tmp_path / "me" / "gan", Path("me/gan")):  # files are meant
        with pytest.raises(FileNotFoundError, match="no checkpoint at"):
            gf.models.DCGAN.from_pretrained(path)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        gf.models.load("me/gan")  # which never downloads
    assert asked == []


def test_push_to_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}

    class Api:
        def __init__(self, **options: Any) -> None:
            pass

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            sent.update(options)
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, folder_path: str, **options: Any) -> str:
            for file in Path(folder_path).iterdir():
                (tmp_path / file.name).write_bytes(file.read_bytes())
            return "address"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    model = gf.models.DCGAN(**GAN)
    assert model.push_to_hub("me/gan", config={"classes": ["cat"]}, private=True) == "address"
    assert sent["private"] is True
    assert equal(gf.models.load(tmp_path), model)
    assert gf.training.load_run(tmp_path)[1]["classes"] == ["cat"]
    card = (tmp_path / "README.md").read_text()
    assert "library_name: genimg_fast" in card
    assert "- dcgan" in card
