"""Multigrid for matting Laplacians: conjugate gradients, preconditioned by W-cycles over blocks of unknowns.

1. Unknowns are in blocks of 16: 4x4 pixels, of which each sees the 8x8 pixels around (64 neighbours); on coarser
   levels 2x2 cells of 4 unknowns, which see 4x4 cells, 64 again. Only blocks with something unknown exist.
2. A matting Laplacian hardly sees what is affine in the colours: 1, red, green and blue are its near-null vectors.
   So a block's coarse unknowns are the factors of these four, orthonormalised in the block (unsmoothed aggregation
   with near-null vectors: Vanek, Mandel, Brezina 1996), and the coarse matrix is Q^T A Q (Galerkin).
3. The smoother is a Chebyshev polynomial of degree 2 of the block-Jacobi iteration: products of many small
   matrices, the same on CPU and CUDA, and in the same order from run to run.
4. The coarsest matrix, of at most some 1,000 unknowns, is inverted. The cycle runs in float32, the conjugate
   gradients in float64.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

_SIZE = 16  # unknowns of a block
_WINDOW = 64  # unknowns that it sees
_COARSEST = 1024
_DEPENDENT = 1e-4  # a near-null vector with less than this that is its own, in a block, is dropped
_RATIO = 8  # the smoother is for eigenvalues within this factor of the largest
_ITERATIONS = 1000


@dataclass(frozen=True)
class BlockMatrix:
    """A symmetric matrix of blocks on a grid.

    Args:
        values: (blocks, 64, 16): what the unknowns of a block have to do with those in its window.
        window: (blocks, 64): where these are in a vector, the vector's length for what is not there.
        position: (blocks, 2): row and column of the block.
        cells: Whether a block is 2x2 cells of 4 unknowns; it is 4x4 pixels otherwise.
    """

    values: Tensor
    window: Tensor
    position: Tensor
    cells: bool = False

    @property
    def inner(self) -> Tensor:
        """Where the block's own unknowns are in its window."""
        window = torch.arange(_WINDOW, device=self.values.device)
        if self.cells:
            return window.view(4, 4, 4)[1:3, 1:3].flatten()
        return window.view(8, 8)[2:6, 2:6].flatten()

    @property
    def neighbour(self) -> Tensor:
        """In which of 3x3 blocks, or cells' blocks, each part of the window is."""
        if self.cells:
            place = (torch.arange(4) + 1) // 2
            return (3 * place[:, None] + place)[..., None].expand(4, 4, 4).flatten()
        place = (torch.arange(8) + 2) // 4
        return (3 * place[:, None] + place).flatten()

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Multiply with a vector of shape (blocks, 16)."""
        return _rows_times(_seen(vector, self.window), self.values)


def _seen(vector: Tensor, window: Tensor) -> Tensor:
    padded = torch.cat([vector.flatten(), vector.new_zeros(1)])
    return padded.index_select(0, window.flatten()).view(window.shape)


def _rows_times(rows: Tensor, matrices: Tensor) -> Tensor:
    # A row times a matrix is twice as fast here, on a CPU, as a matrix times a column.
    return torch.bmm(rows[:, None], matrices)[:, 0]


@dataclass
class _Level:
    matrix: BlockMatrix
    inverses: Tensor  # of the blocks on the diagonal
    largest: float  # eigenvalue of inverses times matrix
    basis: Tensor  # (blocks, 16, 4)
    place: Tensor  # of each block among the next level's cells
    next_blocks: int

    def smooth(self, rhs: Tensor, start: Tensor | None) -> Tensor:
        highest, lowest = 1.05 * self.largest, self.largest / _RATIO
        centre, half = (highest + lowest) / 2, (highest - lowest) / 2
        sigma = centre / half
        residual = rhs if start is None else rhs - self.matrix @ start
        step = _rows_times(residual, self.inverses) / centre
        found = step if start is None else start + step
        rho = 1 / (2 * sigma - 1 / sigma)
        residual = _rows_times(rhs - self.matrix @ found, self.inverses)
        return found + rho / sigma * step + 2 * rho / half * residual

    def restrict(self, residual: Tensor) -> Tensor:
        coarse = residual.new_zeros(4 * self.next_blocks, 4)
        coarse[self.place] = _rows_times(residual, self.basis)
        return coarse.view(self.next_blocks, _SIZE)

    def prolong(self, coarse: Tensor) -> Tensor:
        return _rows_times(coarse.view(-1, 4)[self.place], self.basis.mT)


class _Cycle:
    """An approximate inverse: one W-cycle."""

    def __init__(self, matrix: BlockMatrix, near_null: Tensor) -> None:
        self.levels: list[_Level] = []
        while _SIZE * len(matrix.values) > _COARSEST:
            level, matrix, near_null = _coarsen(matrix, near_null)
            self.levels.append(level)
        self.blocks = len(matrix.values)
        size = _SIZE * self.blocks
        dense = matrix.values.new_zeros(size, size + 1)
        columns = matrix.window[:, None].expand(-1, _SIZE, -1)
        dense.view(self.blocks, _SIZE, size + 1).scatter_add_(2, columns, matrix.values.mT)
        dense = dense[:, :size]
        dense = (dense + dense.mT) / 2
        dense.diagonal().mul_(1 + 1e-10)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(dense)).float()

    def __call__(self, rhs: Tensor, depth: int = 0) -> Tensor:
        if depth == len(self.levels):
            return (self.inverse @ rhs.flatten()).view_as(rhs)
        level = self.levels[depth]
        found = level.smooth(rhs, None)
        coarse = level.restrict(rhs - level.matrix @ found)
        correction = self(coarse, depth + 1)
        if depth + 1 < len(self.levels):
            rest = coarse - self.levels[depth + 1].matrix @ correction
            correction = correction + self(rest, depth + 1)
        return level.smooth(rhs, found + level.prolong(correction))


def _orthonormal(vectors: Tensor) -> Tensor:
    """Orthonormalise columns, (blocks, 16, 4), block by block; dependent ones become 0."""
    basis = torch.zeros_like(vectors)
    scale = vectors.square().sum((1, 2)).sqrt()
    for column in range(vectors.shape[2]):
        rest = vectors[:, :, column, None]
        for _ in range(2):  # once is not enough in floating point
            rest = rest - basis @ (basis.mT @ rest)
        length = rest.norm(dim=(1, 2))
        own = length > _DEPENDENT * scale
        scaled = rest[..., 0] / torch.where(own, length, 1)[:, None]
        basis[:, :, column] = torch.where(own[:, None], scaled, 0)
    return basis


def _coarsen(matrix: BlockMatrix, near_null: Tensor) -> tuple[_Level, BlockMatrix, Tensor]:
    values, device, blocks = matrix.values, matrix.values.device, len(matrix.values)
    basis = _orthonormal(near_null)

    # Each block is a cell of the next level: what it has to do with the 3x3 cells around it, (blocks, 9, 4, 4).
    left = values @ basis  # (blocks, 64, 4)
    seen = torch.cat([basis.view(-1, 4), basis.new_zeros(1, 4)])
    coupling = values.new_zeros(blocks, 9, 4, 4)
    for neighbour in range(9):
        part = (matrix.neighbour == neighbour).nonzero()[:, 0].to(device)
        coupling[:, neighbour] = seen[matrix.window[:, part]].mT @ left[:, part]
    dropped = basis.square().sum(1) < 0.5
    coupling[:, 4].diagonal(dim1=1, dim2=2).add_(dropped)

    # Four cells are a block of it.
    width = int(matrix.position[:, 1].max()) // 2 + 1
    numbers, parent = torch.unique(
        matrix.position[:, 0] // 2 * width + matrix.position[:, 1] // 2, return_inverse=True
    )
    position = torch.stack([numbers // width, numbers % width], 1)
    row, column = matrix.position[:, 0] % 2, matrix.position[:, 1] % 2
    place, count = 4 * parent + 2 * row + column, len(numbers)
    coarse = values.new_zeros(4 * count, 4, 4, 4, 4)  # cell, row and column in the window, unknown there, own one
    for neighbour in range(9):
        coarse[place, row + neighbour // 3, column + neighbour % 3] = coupling[:, neighbour]
    present = torch.zeros(4 * count, dtype=torch.bool, device=device)
    present[place] = True
    missing = (~present).nonzero()[:, 0]  # such a cell has the identity
    coarse[missing, 1 + missing % 4 // 2, 1 + missing % 2] = torch.eye(4, dtype=values.dtype, device=device)
    coarse_values = coarse.view(count, 4, _WINDOW, 4).transpose(1, 2).reshape(count, _WINDOW, _SIZE)

    rows, columns = (2 * (int(n) + 2) for n in position.max(0).values)
    number = torch.full((rows, columns, 4), _SIZE * count, device=device)
    own = torch.arange(_SIZE * count, device=device).view(count, 4, 4)
    for cell in range(4):
        number[2 * position[:, 0] + 1 + cell // 2, 2 * position[:, 1] + 1 + cell % 2] = own[:, cell]
    window = number.unfold(0, 4, 2).unfold(1, 4, 2)[position[:, 0], position[:, 1]].permute(0, 2, 3, 1).flatten(1)

    coarse_null = values.new_zeros(4 * count, 4, 4)
    coarse_null[place] = basis.mT @ near_null
    single = BlockMatrix(values.float(), matrix.window, matrix.position, matrix.cells)
    inverses = torch.linalg.inv(values[:, matrix.inner]).float()
    level = _Level(single, inverses, _largest(single, inverses), basis.float(), place, count)
    following = BlockMatrix(coarse_values, window, position, cells=True)
    return level, following, coarse_null.view(count, _SIZE, 4)


def _largest(matrix: BlockMatrix, inverses: Tensor) -> float:
    """Find the largest eigenvalue of the block-Jacobi iteration, by 15 power iterations."""
    start = torch.rand(inverses.shape[:2], generator=torch.Generator().manual_seed(0)) - 0.5
    vector, length = start.to(inverses.device), 1.0
    for _ in range(15):
        vector = _rows_times(matrix @ (vector / length), inverses)
        length = vector.norm().item()
    return length


def solve(matrix: BlockMatrix, rhs: Tensor, near_null: Tensor, *, tolerance: float) -> Tensor:
    """Solve a system of equations with a symmetric positive definite matrix.

    Args:
        matrix: In float64, of pixels.
        rhs: Right-hand side, of shape (blocks, 16).
        near_null: Vectors that the matrix makes small, of shape (blocks, 16, 4).
        tolerance: Length of the residual, as a share of the right-hand side's, at which to stop.

    Returns:
        The solution, of shape (blocks, 16).
    """
    cycle = _Cycle(matrix, near_null)
    found, residual = torch.zeros_like(rhs), rhs.clone()
    stop = tolerance * rhs.norm()
    direction, before = torch.zeros_like(rhs), torch.ones_like(stop)
    for _ in range(_ITERATIONS):
        if residual.norm() <= stop:
            return found
        towards = cycle(residual.float()).double()
        energy = (residual * towards).sum()
        direction = towards + energy / before * direction
        product = matrix @ direction
        length = energy / (direction * product).sum()
        found = found + length * direction
        residual = residual - length * product
        before = energy
    warnings.warn(f"the matte is rough: no convergence after {_ITERATIONS} steps", RuntimeWarning, stacklevel=3)
    return found
