"""One frame as a block of tokens, and back.

    IMAGE_START  grid(height)  grid(width)  rows x (columns codes, IMAGE_NEW_LINE)  IMAGE_END

A 256-pixel frame of 16 x 16 codes takes 276 tokens. The grid tokens hold the side in pixels (in units
of 32), not in codes, so functions take the side in pixels as well as the codes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.errors import InputError
from data.tokens.vocabulary import (
    IMAGE_CODE_COUNT,
    IMAGE_CODE_START,
    IMAGE_END,
    IMAGE_NEW_LINE,
    IMAGE_START,
    grid_size_token,
)

_HEAD = 3  # image start, height, width


def image_block_length(rows: int, columns: int) -> int:
    """Number of tokens of a frame of `rows` x `columns` codes."""
    return _HEAD + rows * (columns + 1) + 1


def image_block(codes: ArrayLike, pixels: int) -> NDArray[np.int64]:
    """Codes [..., R, C] of frames `pixels` high -> ids int64 [..., `image_block_length(R, C)`].

    Like `write_image_blocks`, into a new array.
    """
    grid = np.asarray(codes)
    size = image_block_length(*grid.shape[-2:]) if grid.ndim >= 2 else 0
    block = np.empty((*grid.shape[:-2], size), np.int64)
    write_image_blocks(grid, pixels, block)
    return block


def write_image_blocks(codes: ArrayLike, pixels: int, block: NDArray[np.int64] | NDArray[np.uint16]) -> None:
    """Write codes [..., R, C] of frames `pixels` high as ids into `block` [..., `image_block_length(R, C)`].

    Leading dimensions are frames; each becomes one block. The width in pixels follows from the shape
    of the grid (codes are square).

    Raises:
        InputError: Codes are not integers in [0, 8192), or no grid, or the side is no multiple of 32.
    """
    grid = np.asarray(codes)
    if grid.ndim < 2 or 0 in grid.shape[-2:] or not np.issubdtype(grid.dtype, np.integer):
        raise InputError(f"image codes are {grid.dtype} {grid.shape}, expected integers [..., rows, columns]")
    if grid.size and not 0 <= int(grid.min()) <= int(grid.max()) < IMAGE_CODE_COUNT:
        raise InputError(
            f"image codes range from {grid.min()} to {grid.max()}, expected 0 to {IMAGE_CODE_COUNT - 1}; "
            "the vocabulary holds no more"
        )
    rows, columns = grid.shape[-2:]
    block[..., 0] = IMAGE_START
    block[..., 1] = _grid_token(pixels)
    block[..., 2] = _grid_token(pixels * columns // rows)
    block[..., -1] = IMAGE_END
    lines = block[..., _HEAD:-1].reshape(*grid.shape[:-1], columns + 1, copy=False)
    np.add(grid, IMAGE_CODE_START, out=lines[..., :columns], dtype=block.dtype, casting="unsafe")
    lines[..., columns] = IMAGE_NEW_LINE


def image_codes(ids: ArrayLike) -> NDArray[np.int64]:
    """Ids of one block -> codes int64 [R, C]; the inverse of `image_block`.

    Raises:
        InputError: The ids are not one well-formed image block.
    """
    block = np.asarray(ids)
    if block.ndim != 1 or len(block) < image_block_length(1, 1):
        raise InputError(f"image block has shape {block.shape}, expected one block [L] of at least 6 tokens")
    if block[0] != IMAGE_START or block[-1] != IMAGE_END:
        raise InputError(
            f"image block begins with {block[0]} and ends with {block[-1]}, expected {IMAGE_START} "
            f"and {IMAGE_END}"
        )
    body = block[_HEAD:-1]
    columns = int(np.argmax(body == IMAGE_NEW_LINE))
    if columns == 0 or len(body) % (columns + 1):
        raise InputError(f"image block of {len(block)} tokens does not divide into rows of equal length")
    lines = body.reshape(-1, columns + 1)
    codes = lines[:, :columns].astype(np.int64) - IMAGE_CODE_START
    if bool((lines[:, columns] != IMAGE_NEW_LINE).any()) or not (
        0 <= int(codes.min()) <= int(codes.max()) < IMAGE_CODE_COUNT
    ):
        raise InputError("image block holds tokens that are no image codes, or rows of unequal length")
    return codes


def _grid_token(pixels: int) -> int:
    try:
        return grid_size_token(pixels)
    except ValueError as error:
        raise InputError(f"{error}; choose another resolution") from error
