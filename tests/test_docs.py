import re
from pathlib import Path

import pytest

import genimg_fast as gf

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="tests run without the documentation")


@pytest.mark.parametrize("page", sorted(p.name for p in DOCS.glob("*.md") if "\n```python\n" in p.read_text()))
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
    names = {}
    for block in blocks:  # one after the other, as a reader would paste them
        exec(re.sub(r"\bsteps=\d+", "steps=2", block), names)


def test_the_citation_is_of_this_version():
    assert re.search(rf"^version: {re.escape(gf.__version__)}$", (ROOT / "CITATION.cff").read_text(), re.M)
