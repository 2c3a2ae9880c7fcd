"""A query's sketch: 64 signed bytes that keep distances, from which drift is measured without an encode.

With ``e`` the base encoder's normalised vector (dim,), and ``P`` (64, dim) of signs,

    sketch[i] = clip(round(32 * sum_j P[i, j] * e[j]), -127, 127)

The signs are the bits of SHAKE-256 over ``clickloop sketch v1 64x<dim>``, row by row, most significant bit of a
byte first, 1 for +1 and 0 for -1: the same on every node, in every language. Each projection of a unit vector has
variance 1, so values are clipped beyond 4 standard deviations only, and ``|a - b| / (32 * 8)`` estimates the
distance of the two vectors (Achlioptas 2003, database-friendly random projections).
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
from numpy.typing import NDArray

SKETCH_DIM = 64
SCALE = 32.0


@cache
def projection(dim: int) -> NDArray[np.float32]:
    """The signs, (64, dim) float32."""
    bits = SKETCH_DIM * dim
    raw = hashlib.shake_256(f"clickloop sketch v1 {SKETCH_DIM}x{dim}".encode()).digest((bits + 7) // 8)
    ones = np.unpackbits(np.frombuffer(raw, dtype=np.uint8))[:bits].reshape(SKETCH_DIM, dim)
    return ones.astype(np.float32) * 2.0 - 1.0


def sketch(vector: NDArray[np.float32]) -> bytes:
    """64 bytes, int8, of the base encoder's vector (dim,) float32."""
    projected = SCALE * (projection(vector.shape[0]) @ vector)
    clipped: NDArray[np.int8] = np.clip(np.rint(projected), -127, 127).astype(np.int8)
    return clipped.tobytes()
