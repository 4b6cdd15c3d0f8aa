"""Rank 16 of one dense 4096 x 4096 difference with a full-rank tail: a thin SVD against ours."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from lorahub.kernels.dense import singular_values, squared_distance
from lorahub.kernels.truncation import truncated

SIZE, RANK = 4096, 16


def main() -> None:
    """Print both times in CPU seconds at one thread, the ratio and the excess residual."""
    torch.set_num_threads(1)
    truncated(torch.randn(600, 600), rank=RANK, seed=0)
    print(f"{'':<20} {'SVD s':>8} {'lorahub s':>10} {'ratio':>6} {'residual':>9} {'excess':>9}")
    for name, M in matrices():
        start = time.process_time()
        found = truncated(M, rank=RANK, seed=1)
        ours = time.process_time() - start
        start = time.process_time()
        torch.linalg.svd(M, full_matrices=False)
        theirs = time.process_time() - start
        sigma = singular_values(M)
        least = float((sigma[RANK:] ** 2).sum()) ** 0.5
        residual = squared_distance(M, found.left, found.right) ** 0.5
        print(
            f"{name:<20} {theirs:8.2f} {ours:10.3f} {theirs / ours:6.0f} "
            f"{residual / found.energy**0.5:9.3f} {residual / least - 1:9.1e}"
        )


def matrices() -> Iterator[tuple[str, Tensor]]:
    """Differences, from spectra that decay to one that hardly does."""
    generator = torch.Generator().manual_seed(0)

    def noise(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) / SIZE**0.5

    rank = torch.arange(1, SIZE + 1).float()
    U, V = (torch.linalg.qr(noise(SIZE, SIZE)).Q for _ in range(2))
    for power in (1.0, 0.5):
        yield f"i^-{power}", (U * rank**-power) @ V.mT
    yield "rank 64 over noise", noise(SIZE, 64) * 3 @ noise(64, SIZE) + 0.1 * noise(SIZE, SIZE)
    yield "noise alone", noise(SIZE, SIZE)


if __name__ == "__main__":
    main()
