"""Inpainting."""
from typing import Literal
import torch, torch.nn.functional as F
from torch import Tensor
from genimg_fast.editing.patchmatch import complete
from genimg_fast.editing.pictures import Mask, check_mask, check_picture
from genimg_fast.options import NonNegativeInt, PositiveInt


def inpaint(image: Tensor, *, mask: Mask, dilate: NonNegativeInt = 0, guide: Mask | None = None, method: Literal["patchmatch", "prior"] = "patchmatch", patch: PositiveInt = 7, generator: torch.Generator | None = None, progress: bool = False) -> Tensor:
    hole = mask[0] > 0.5
    if dilate:
        hole = F.max_pool2d(hole[None].to(image), 2 * dilate + 1, 1, dilate)[0] > 0
    allowed = torch.ones_like(hole) if guide is None else guide[0] > 0.5
    filled = complete(image, hole, allowed, patch=patch, generator=generator, progress=progress)
    return torch.where(hole, filled.clamp(0, 1), image)
