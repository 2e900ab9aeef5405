import pytest

import genimg_fast as gf
from genimg_fast.cli import main
from genimg_fast.cli.listing import DATA
from genimg_fast.data.sources import _SOURCES


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    everything = capsys.readouterr().out
    for what, name, text in (
        ("models", "dcgan", "A DCGAN: .generator and .discriminator."),
        ("data", "moving-digits", "sequences of digits that move about, made as they are needed"),
        ("commands", "info", "Show versions, and which path is live for each operator and device."),
    ):
        assert main(["list", what]) == 0
        lines = capsys.readouterr().out
        assert [name, text] in [line.strip().split(maxsplit=1) for line in lines.splitlines()]
        assert f"{what}:\n{lines}" in everything
    assert _SOURCES.keys() <= DATA.keys()
    assert all(f"\n  {model} " in everything for model in gf.models.list_models())
