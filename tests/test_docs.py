import re
import subprocess
import sys
from pathlib import Path

import pytest

import genimg_fast as gf

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="tests run without the documentation")


def blocks(page, language):
    """The code on a page, with trainings cut short."""
    found = re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
    return [re.sub(r"\bsteps=\d+", "steps=2", block) for block in found]


@pytest.mark.parametrize("page", sorted(p.name for p in DOCS.glob("*.md") if blocks(p.name, "python")))
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(page, "python"):  # one after the other, as a reader would paste them
        exec(block, names)


def test_the_command_of_the_page_on_own_models_trains(tmp_path):
    (tmp_path / "my_models.py").write_text(blocks("own-model.md", "python")[0])
    (options,) = re.findall(r"^genimg-fast (train my_models.*)", (DOCS / "own-model.md").read_text(), re.M)
    words = [sys.executable, "-m", "genimg_fast", *options.split(), "--steps", "2"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert gf.training.load_checkpoint(next((tmp_path / "runs").iterdir()))["step"] == 2


def test_every_section_of_the_readme_has_a_page():
    sections = set(re.findall(r"^## .*", (ROOT / "README.md").read_text(), re.M))
    shown = re.findall(r'^:start-after: "(## .*)"$', "\n".join(p.read_text() for p in DOCS.glob("*.md")), re.M)
    assert set(shown) == sections


def test_the_citation_is_of_this_version():
    assert re.search(rf"^version: {re.escape(gf.__version__)}$", (ROOT / "CITATION.cff").read_text(), re.M)
