import pytest
import torch

from genimg_fast.editing import quilt, synthesise, texture


def test_methods() -> None:
    exemplar = torch.rand(1, 40, 48, generator=torch.Generator().manual_seed(0))
    for method, function in (("quilting", quilt), ("transport", synthesise)):
        made, expected = (
            f(exemplar, size=(36, 64), tileable=True, generator=torch.Generator().manual_seed(0), **given)
            for f, given in ((texture, {"method": method}), (function, {}))
        )
        assert torch.equal(made, expected)
    with pytest.raises(ValueError, match="patch must be left out: transport has patches of several sizes"):
        texture(exemplar, size=(36, 64), method="transport", patch=8)
