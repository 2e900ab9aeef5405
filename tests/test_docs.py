import re
import subprocess
import sys
from pathlib import Path

import pytest

import genimg_fast as gf

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="tests run without the documentation")


def test_the_code_of_the_pages_runs(tmp_path):
    """Each page's on its own, with trainings cut short; in another process, for some registers models."""
    script = tmp_path / "pages.py"
    with open(script, "w") as file:
        for page in sorted(DOCS.glob("*.md")):
            code = "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
            code = re.sub(r"\bsteps=\d+", "steps=2", code)
            file.write(f"exec(compile({code!r}, {page.name!r}, 'exec'), {{}})\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_links_of_the_readme_lead_somewhere():
    links = set(re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()))
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_citation_is_of_this_version():
    assert re.search(rf"^version: {re.escape(gf.__version__)}$", (ROOT / "CITATION.cff").read_text(), re.M)
