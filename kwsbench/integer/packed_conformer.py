"""A Conformer encoder on packed weights: every encoder frame is one call of a compiled kernel (kernels/conformer.py).

Gives what the NumPy reference (integer/conformer.py) gives, to float rounding: a sum in another order may move a value
over a rounding edge.
"""

from __future__ import annotations

import numpy as np

from kwsbench.integer.conformer import Conformer, ConformerState, block_linears
from kwsbench.integer.kernels import conformer as kernel
from kwsbench.integer.kernels import matvec
from kwsbench.integer.kernels.arena import choose_layout, make_arena


class PackedConformer:
    """An encoder laid out in memory; ``blocks`` as in packed.py.

    Raises:
        ValueError: ``blocks`` on a processor without the instruction; a code off its grid.
    """

    def __init__(self, conformer: Conformer, blocks: bool | None = None):
        self.conformer = conformer
        blocks = matvec.has_blocks() if blocks is None else blocks
        linears = conformer.linears
        self._arena = make_arena([l.matrix for l in linears], [choose_layout(l.matrix, blocks) for l in linears])
        d = self._arena.descriptions
        starts = np.cumsum([0, *(len(l.bias) for l in linears)])[:-1]
        widest = int(max(d[:, matvec.WIDTH].max(), d[:, matvec.COUNT].max(), kernel_places(conformer)))
        room = np.zeros(-(-widest // 32) * 32, np.int8), np.zeros(-(-widest // 16) * 16, np.int32)
        scales = np.array([l.scale for l in linears], np.float32)
        units, biases = (np.concatenate([getattr(l, name) for l in linears]) for name in ("unit", "bias"))
        self._weights = (d, self._arena.data, scales, starts, units, biases, *room)
        self._float = tuple(map(np.ascontiguousarray, _remainder(conformer)))
        self._rooms = np.zeros((5, widest), np.float32)

    @property
    def held_bytes(self) -> dict[str, int]:
        """Bytes in memory: ``matrices`` (padding and tables included), ``constants`` (units and biases of rows,
        scales), and the ``float`` remainder (norms, depthwise filters, distances)."""
        return {
            "matrices": sum(self._arena.held),
            "constants": sum(v.nbytes for v in self._weights[2:6]),
            "float": sum(v.nbytes for v in self._float),
        }

    def frame(self, x: np.ndarray, state: ConformerState) -> tuple[np.ndarray, ConformerState]:
        """One joined frame int8 ``[stack * n_mels]`` -> encoder frame int8 ``[width]`` and the next state."""
        keys, values, history = (_with_room(cache) for cache in (state.keys, state.values, state.history))
        out = np.zeros(self.conformer.width, np.int8)
        real = x.astype(np.float32) * np.float32(self.conformer.input.scale)
        scale = np.float32(self.conformer.output_scale)
        caches = keys, values, history
        kernel.conformer_frame(real, self._weights, *self._float, scale, *caches, state.seen, self._rooms, out)
        seen = min(state.seen + 1, state.keys.shape[1])
        return out, ConformerState(keys[:, 1:], values[:, 1:], history[:, 1:], seen)


def kernel_places(conformer: Conformer) -> int:
    """Places that attention sees, the present one among them."""
    return conformer.blocks[0].attention.distance.shape[1]


def _with_room(cache: np.ndarray) -> np.ndarray:
    """A copy whose last place is the newest; the kernel moves all on and fills it."""
    count, places, width = cache.shape
    grown = np.zeros((count, places + 1, width), np.int8)
    grown[:, 1:] = cache
    return grown


def _remainder(conformer: Conformer) -> tuple[np.ndarray, ...]:
    """Norms [blocks, 6, 2, width], distances, depthwise filters and biases, scales of caches [blocks, 3]; float32."""
    norms, kept = [], []
    for block in conformer.blocks:
        a, c = block.attention, block.convolution
        parts = (block.first.norm, a.norm, c.norm, c.inner_norm, block.second.norm, block.norm)
        norms.append([[n.weight, n.bias] for n in parts])
        kept.append([a.key_scale, a.value_scale, c.history_scale])
        assert len(block_linears(block)) == 10
    return (
        np.array(norms, np.float32),
        np.stack([b.attention.distance for b in conformer.blocks]),
        np.stack([b.convolution.depthwise for b in conformer.blocks]),
        np.stack([b.convolution.bias for b in conformer.blocks]),
        np.array(kept, np.float32),
    )
