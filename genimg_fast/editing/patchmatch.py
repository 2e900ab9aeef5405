"""Completion by patches: a hole is filled so that each patch in it is like one of the picture.

1. A pyramid of pictures, each half the last, until the hole is about two patches wide. What a coarse pixel knows
   comes of known pixels only. Beside colours there are two texture features, the mean size of the gradient in x
   and in y: where fine texture is blurred, they still tell it from what is smooth.
2. At the coarsest level the hole is filled from its border inwards, a layer at a time, by what is known so far.
3. At each level two steps alternate. Matching: every patch that touches the hole looks for the most similar patch
   that does not, all at once, among where its neighbours at 1, 2, 4 and 8 pixels found theirs (propagation), and
   at random places around its own, near and far (PatchMatch). Voting: a pixel becomes the mean of what the patches
   over it found, weighted by their similarity, and by how near they are to the hole's border.
4. Matches go on to the next finer level, where the hole is voted anew, from finer pixels.
5. In the end a pixel is a copy of what its most similar patch found, which is not blurred by a mean. Beside it,
   the copy goes on a little otherwise than what is there, a known pixel or another patch's copy. As far as this is
   of light, not an edge, a smooth correction takes it away (Poisson's equation), and no seam shows.

A match counts as less similar the farther away it is: what is near belongs to the same thing more often.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast.data.progress import bar

_TEXTURE = 4.0  # how much a gradient's difference counts, against a colour's
_TRUST = 0.8  # what a patch counts for when voting, against one that is a pixel nearer to the border
_LIGHT = 0.04  # from which difference on it is an edge, not one of light
_CHUNK = 1 << 15  # patches that are compared at a time, for memory
_SHIFTS = (8, 4, 2, 1)
_NEAR = 0.1  # by how much a match that is as far away as the hole is wide counts as less similar
_BREAK = 0.01  # how much an edge between copies resists, when their light is made to agree


def complete(
    image: Tensor, hole: Tensor, allowed: Tensor, *, patch: int, generator: torch.Generator | None, progress: bool
) -> Tensor:
    """Fill a hole.

    Args:
        image: A picture.
        hole: What is missing, booleans of shape (height, width).
        allowed: Where patches may be taken from, booleans of that shape.
        patch: Side of a patch, in pixels, odd.
        generator: Random numbers; by default torch's own.
        progress: Whether to show a progress bar.

    Returns:
        The picture, complete. At least one patch must be allowed, and not touch the hole.

    Source:
        Barnes et al., "PatchMatch" (2009), section 3; Wexler, Shechtman and Irani, "Space-Time Completion of
        Video" (2007), section 3; Newson et al., "Video Inpainting of Complex Scenes" (2014), sections 3.3 to 3.6.
    """
    levels = _pyramid(image.detach().float(), hole, allowed, patch)
    while not len(levels[-1].sources):
        levels.pop()
    coarser: _Level | None = None
    for number, level in bar(list(enumerate(levels))[::-1], "inpaint", "level", progress):
        if coarser is None:
            level.begin(generator)
        else:
            level.refine(coarser, generator)
        for _ in range(4 if number == 0 else 10):
            level.match(2, generator)
            if level.vote() < 2e-4:
                break
        coarser = level
    level.match(2, generator)
    return _blended(level).to(image)


def _pyramid(image: Tensor, hole: Tensor, allowed: Tensor, patch: int) -> list["_Level"]:
    """Make levels, the finest first."""
    depth = int(depths(hole).max())
    number, side = 1, min(image.shape[1:])
    while 2 * depth > patch * 2 ** (number - 1) and side >= 4 * patch * 2**number:
        number += 1
    colours = image * (3 / len(image)) ** 0.5
    known = (~hole)[None].to(image)
    window = 2 ** (number - 1) | 1  # odd
    grey = image.mean(0, keepdim=True)
    features = [colours]
    for axis in (1, 2):
        steps = F.pad((grey.diff(dim=axis) * _both(known, axis)).abs(), (0, axis - 1, 0, 2 - axis))
        counts = F.pad(_both(known, axis), (0, axis - 1, 0, 2 - axis))
        means, shares = (F.avg_pool2d(x[None], window, 1, window // 2)[0] for x in (steps, counts))
        features.append(_TEXTURE * means / shares.clamp(min=1e-6))
    level = torch.cat(features)
    levels = []
    for _ in range(number):
        levels.append(_Level(level * known, known[0] == 0, allowed, patch, (3 / len(image)) ** 0.5, len(image)))
        halves = F.avg_pool2d(torch.cat([level * known, known])[None], 2, ceil_mode=True)[0]
        level = halves[:-1] / halves[-1:].clamp(min=1e-6)
        known = -F.max_pool2d(-known[None], 2, ceil_mode=True)[0]
        allowed = F.max_pool2d(allowed[None, None].to(image), 2, ceil_mode=True)[0, 0] > 0
    return levels


def depths(hole: Tensor) -> Tensor:
    """Count layers of a hole: 0 outside, 1 at its border."""
    inner = hole[None].float()
    depth = torch.zeros_like(inner)
    while bool(inner.any()):
        depth += inner
        inner = -F.max_pool2d(-F.pad(inner, (1, 1, 1, 1), value=1), 3, 1)
    return depth[0]


def _both(known: Tensor, axis: int) -> Tensor:
    n = known.shape[axis]
    return known.narrow(axis, 1, n - 1) * known.narrow(axis, 0, n - 1)


def _blended(level: "_Level") -> Tensor:
    """Copy what the most similar patches found, and let the light of the copies agree with what is around each."""
    reach, width = level.patch // 2, level.width
    hole, inside = (F.pad(x, (reach,) * 4) for x in (level.hole, torch.ones_like(level.hole)))
    pixels = level.pixels[:, : level.channels] / level.scale
    origin = torch.arange(len(pixels), device=level.device).view_as(hole)
    origin[hole] = level.origins(level.hole.nonzero())
    places = hole.nonzero()
    (top, left), (bottom, right) = (places.amin(0) - 1).tolist(), (places.amax(0) + 2).tolist()
    part = (slice(top, bottom), slice(left, right))
    weights, steps = [], []
    for axis, step in ((0, width), (1, 1)):
        (here, there), (gone, gone_there), (is_in, is_in_there) = (
            (x[part].narrow(axis, 0, x[part].shape[axis] - 1), x[part].narrow(axis, 1, x[part].shape[axis] - 1))
            for x in (origin, hole, inside)
        )
        # Either copy goes on by a pixel: what it has there differs from what the other one has.
        from_here = gone & inside.flatten()[here + step * gone]
        from_there = gone_there & inside.flatten()[there - step * gone_there]
        differences = pixels[here + step * gone] - pixels[there], pixels[here] - pixels[there - step * gone_there]
        mean = sum(d * f[..., None] for d, f in zip(differences, (from_here, from_there), strict=True))
        mean = mean / (from_here.to(mean) + from_there.to(mean)).clamp(min=1)[..., None]
        light = (mean.abs() < _LIGHT).all(2)
        weights.append(((gone | gone_there) & is_in & is_in_there).to(mean) * torch.where(light, 1.0, _BREAK))
        steps.append((mean * light[..., None]).permute(2, 0, 1))
    pixels[hole.flatten()] = pixels[origin[hole]]
    picture = pixels.T.reshape(level.channels, *hole.shape)
    picture[:, part[0], part[1]] += _solve(weights, steps, hole[part].to(picture))
    return picture[:, reach : reach + level.size[0], reach : reach + level.size[1]]


def _solve(weights: list[Tensor], steps: list[Tensor], free: Tensor) -> Tensor:
    """Find what is 0 but where it is free, and has such steps along both axes, in the mean of weighted squares."""

    def gather(along: list[Tensor]) -> Tensor:
        down, across = along
        return (
            F.pad(down, (0, 0, 1, 0)) - F.pad(down, (0, 0, 0, 1)) + F.pad(across, (1, 0)) - F.pad(across, (0, 1))
        ) * free

    def apply(values: Tensor) -> Tensor:
        return gather([w * values.diff(dim=axis) for w, axis in zip(weights, (1, 2), strict=True)])

    # Conjugate gradients.
    residual = gather([w * s for w, s in zip(weights, steps, strict=True)])
    found, direction, size = torch.zeros_like(residual), residual, residual.square().sum()
    enough = 1e-6 * size
    for _ in range(2000):
        if size <= enough:
            break
        moved = apply(direction)
        length = size / (direction * moved).sum()
        found = found + length * direction
        residual = residual - length * moved
        size, before = residual.square().sum(), size
        direction = residual + size / before * direction
    return found


class _Level:
    """A level of the pyramid; a patch is known by its centre."""

    def __init__(
        self, features: Tensor, hole: Tensor, allowed: Tensor, patch: int, scale: float, channels: int
    ) -> None:
        self.patch, self.scale, self.channels = patch, scale, channels
        self.size, self.device = hole.shape, hole.device
        reach = patch // 2
        margin = (reach,) * 4
        self.width = self.size[1] + 2 * reach
        # Features of a pixel, and pixels of a row, lie side by side: a row of a patch is a slice.
        self.pixels = F.pad(features, margin).permute(1, 2, 0).reshape(-1, len(features)).contiguous()
        self.known = F.pad((~hole).to(features), margin).flatten()
        span = torch.arange(patch, device=self.device)
        self.rows = span * self.width
        self.offsets = (self.rows[:, None] + span).flatten()

        touched = F.max_pool2d(hole[None].to(features), patch, 1, reach)[0] > 0
        whole = F.max_pool2d(F.pad(1 - allowed[None].to(features), margin, value=1), patch, 1)[0] == 0
        self.valid = whole & ~touched
        self.sources = self.valid.nonzero()
        self.hole, self.centres = hole, touched.nonzero()
        numbers = torch.arange(len(self.centres), device=self.device)
        # The number of the patch at a place, with a margin; -1 where the patch does not touch the hole.
        self.reach = max(reach, *_SHIFTS)
        self.numbers = torch.full([n + 2 * self.reach for n in self.size], -1, device=self.device)
        self.numbers[tuple((self.centres + self.reach).T)] = numbers
        self.matches = self.centres.clone()
        self.distances = torch.zeros(len(numbers), dtype=features.dtype, device=self.device)
        self.shares: Tensor | None = None
        # Patches are trusted the less, the deeper in the hole they are.
        layers = depths(hole)
        self.trust = _TRUST ** layers[tuple(self.centres.T)]
        self.breadth = 2 * float(layers.max())

    def begin(self, generator: torch.Generator | None) -> None:
        """Fill the hole from its border inwards."""
        self.matches = self._draw(len(self.centres), generator)
        rest = self.hole.clone()
        while bool(rest.any()):
            inner = -F.max_pool2d(-F.pad(rest[None].to(self.pixels), (1, 1, 1, 1), value=1), 3, 1)[0] > 0
            layer = rest & ~inner
            self.match(4, generator)
            self.vote(layer)
            self.known[self.flat(layer.nonzero() + self.patch // 2)] = 1
            rest = inner

    def refine(self, coarser: "_Level", generator: torch.Generator | None) -> None:
        """Take over matches, and fill the hole by them."""
        numbers = coarser.numbers[tuple((self.centres // 2 + coarser.reach).T)]
        self.matches = 2 * coarser.matches[numbers] + self.centres % 2
        self.distances = coarser.distances[numbers]
        lost = (numbers < 0) | ~self._is_valid(self.matches)
        self.matches = torch.where(lost[:, None], self._draw(len(self.matches), generator), self.matches)
        self.distances[lost] = coarser.distances.max()
        self.vote()
        self.known[self.flat(self.hole.nonzero() + self.patch // 2)] = 1

    def match(self, rounds: int, generator: torch.Generator | None) -> None:
        """Look for more similar patches."""
        shares = self.known[self.flat(self.centres)[:, None] + self.offsets].mean(1)
        self.shares = shares if bool((shares < 1).any()) else None
        everything = torch.arange(len(self.centres), device=self.device)
        self.distances = self._compare(everything, self.matches)
        for _ in range(rounds):
            for step in _SHIFTS:
                for shift in ((0, step), (step, 0), (0, -step), (-step, 0)):
                    there = torch.tensor(shift, device=self.device)
                    numbers = self.numbers[tuple((self.centres + there + self.reach).T)]
                    self._try(self.matches[numbers] - there, numbers >= 0)
            self._try(self._draw(len(self.centres), generator))
            radius = max(self.size)
            while radius >= 1:
                jump = torch.randint(-radius, radius + 1, self.matches.shape, generator=generator)
                self._try(self.matches + jump.to(self.device))
                radius //= 2

    def vote(self, pixels: Tensor | None = None) -> float:
        """Set pixels, by default all of the hole, to what patches over them found; return the mean change."""
        places = (self.hole if pixels is None else pixels).nonzero()
        voted = torch.cat([self.votes(some) for some in places.split(_CHUNK)])
        flat = self.flat(places + self.patch // 2)
        change = (voted - self.pixels[flat])[:, : self.channels].abs().mean()
        self.pixels[flat] = voted
        return float(change)

    def origins(self, places: Tensor) -> Tensor:
        """Get where the most similar patches over pixels found them, in the order of ``pixels``."""
        parts = []
        for some in places.split(_CHUNK):
            found, numbers = self._found(some)
            distances = self.distances[numbers].masked_fill(numbers < 0, torch.inf)
            parts.append(found.gather(1, distances.argmin(1, keepdim=True))[:, 0])
        return torch.cat(parts)

    def _found(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Get where the patches over pixels found them, and these patches' numbers, -1 where there is none."""
        span = torch.arange(self.patch, device=self.device)
        within = torch.cartesian_prod(span, span)
        centres = places[:, None] + self.patch // 2 - within
        numbers = self.numbers[tuple((centres + self.reach).permute(2, 0, 1))]
        return self.flat(self.matches[numbers] + within), numbers

    def votes(self, places: Tensor) -> Tensor:
        """Get the features that patches over pixels found, (pixels, features)."""
        found, numbers = self._found(places)
        distances = self.distances[numbers]
        least = distances.masked_fill(numbers < 0, torch.inf).amin(1, keepdim=True)
        spread = (distances * (numbers >= 0)).mean(1, keepdim=True).clamp(min=1e-9)
        weights = torch.exp((least - distances) / (2 * spread)) * (numbers >= 0)
        weights = weights * self.trust[numbers]
        if self.shares is not None:
            weights = weights * self.shares[numbers].pow(4)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
        return torch.einsum("po,pof->pf", weights, F.embedding(found, self.pixels))

    def flat(self, places: Tensor) -> Tensor:
        """Get the first pixels of patches with such centres, in the order of ``pixels``."""
        return places[..., 0] * self.width + places[..., 1]

    def _draw(self, number: int, generator: torch.Generator | None) -> Tensor:
        return self.sources[torch.randint(len(self.sources), (number,), generator=generator).to(self.device)]

    def _is_valid(self, places: Tensor) -> Tensor:
        y, x = places.T
        height, width = self.size
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        return inside & self.valid[y.clamp(0, height - 1), x.clamp(0, width - 1)]

    def _try(self, places: Tensor, sensible: Tensor | None = None) -> None:
        """Let patches match others, where those are more similar."""
        new = self._is_valid(places) & (places != self.matches).any(1)
        tried = (new if sensible is None else new & sensible).nonzero()[:, 0]
        if not len(tried):
            return
        distances = self._compare(tried, places[tried])
        better = distances < self.distances[tried]
        tried, distances = tried[better], distances[better]
        self.distances[tried], self.matches[tried] = distances, places[tried]

    def _compare(self, numbers: Tensor, places: Tensor) -> Tensor:
        """Sum squared differences of patches to those at places, over what is known."""
        here, there = self.flat(self.centres[numbers]), self.flat(places)
        parts = zip(here.split(_CHUNK), there.split(_CHUNK), numbers.split(_CHUNK), strict=True)
        differences = torch.cat([self._differences(*part) for part in parts])
        away = (self.centres[numbers] - places).to(differences).square().sum(1)
        return differences.add_(away, alpha=_NEAR / self.breadth**2)

    def _differences(self, here: Tensor, there: Tensor, numbers: Tensor) -> Tensor:
        features = self.pixels.shape[1]
        length = len(self.pixels) - self.patch + 1
        slices = self.pixels.as_strided((length, self.patch * features), (features, 1))
        differences = F.embedding(here[:, None] + self.rows, slices)
        differences -= F.embedding(there[:, None] + self.rows, slices)
        if self.shares is None:
            return differences.mul_(differences).sum((1, 2))
        squares = differences.square_().view(len(here), -1, features).sum(2)
        known = self.known[here[:, None] + self.offsets]
        return (squares * known).sum(1) / self.shares[numbers].clamp(min=1e-6)
