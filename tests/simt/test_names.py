"""Names in the kernels' namespaces."""

import subprocess

from simt_build import COMMON_FLAGS, ROOT, compiler


def test_no_two_families_give_one_name_to_different_things():
    """All headers in one translation unit, because in one library a name has to be one thing."""
    headers = sorted(file.name for file in (ROOT / "csrc" / "cuda").glob("*.cuh"))
    assert len(headers) > 10
    source = "".join(f'#include "{header}"\n' for header in headers)
    command = [compiler(), *COMMON_FLAGS, "-fsyntax-only", "-x", "c++", "-"]
    result = subprocess.run(command, input=source, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
