"""The engine that runs a recognizer on packed weights (listen.py): every encoder frame is one call of a compiled
kernel.

At load, every matrix is laid out for the processor at its own width (kernels/layout.py); the constants of gates stand
in arrays of their own. ``held_bytes`` says what all this takes in memory.
"""

from __future__ import annotations

import numpy as np

from kwsbench.integer.kernels import matvec
from kwsbench.integer.kernels.arena import choose_layout, make_arena
from kwsbench.integer.listen import spans
from kwsbench.integer.recognizer import Gates, Recognizer


class Packed:
    """A recognizer laid out in memory. ``blocks``: with the dot-product instruction (see kernels/matvec.py), or plain
    loops.

    Raises:
        ValueError: ``blocks`` on a processor without the instruction; a code off its grid.
    """

    def __init__(self, recognizer: Recognizer, blocks: bool | None = None):
        self.recognizer = recognizer
        blocks = matvec.has_blocks() if blocks is None else blocks
        matrices = recognizer.matrices
        layouts = [choose_layout(m, blocks) for m in matrices]
        self._embedding = 2 * len(recognizer.encoder)
        layouts[self._embedding] = "rows"  # it is read by rows, never multiplied
        self._arena = make_arena(matrices, layouts)
        gates = (*recognizer.encoder, recognizer.prediction, recognizer.joint)
        self._constants = _constants(gates)
        first = [2 * n + (n >= len(recognizer.encoder)) for n in range(len(gates))]
        rows = np.cumsum([0, *(len(g.bias) for g in gates)])[:-1]
        places = [*(span.start for span in spans(recognizer)), 0, 0]
        self._gates = np.array([[n, n + 1, row, place] for n, row, place in zip(first, rows, places)], np.int64)
        self._weights: tuple[np.ndarray, ...] = (self._arena.descriptions, self._arena.data, *self._constants)
        self._rooms = _rooms(self._arena.descriptions)
        self._label_row = np.zeros(recognizer.embedding.codes.shape[1], np.int8)
        self._scores = np.zeros(len(recognizer.output.bias), np.int32)

    @property
    def held_bytes(self) -> dict[str, int]:
        """Bytes in memory: ``matrices`` (padding and tables included), ``constants`` of gates and output, curve
        ``tables``, ``work`` (room for one frame)."""
        return {
            "matrices": sum(self._arena.held),
            "constants": sum(v.nbytes for v in self._constants) + self.recognizer.output.bias.nbytes,
            "tables": matvec.SIGMOID.nbytes + matvec.TANH.nbytes,
            "work": sum(v.nbytes for v in self._rooms) + self._label_row.nbytes + self._scores.nbytes,
        }

    @property
    def bytes_per_gate_row(self) -> int:
        """Bytes of constants per row of a gate."""
        multipliers, bias, shift = self._constants
        return 2 * multipliers.itemsize + bias.itemsize + shift.itemsize

    @property
    def matrix_bytes(self) -> tuple[int, ...]:
        """Bytes in memory of every matrix, in the order of ``Recognizer.matrices``."""
        return self._arena.held

    def encode(self, x: np.ndarray, h: np.ndarray, c: np.ndarray, first: int, last: int) -> None:
        self._layers(self._gates[first:last], x, h, c)

    def predict(self, label: int, h: np.ndarray, c: np.ndarray) -> None:
        matvec.decode_row(self._arena.descriptions[self._embedding], self._arena.data, label, self._label_row)
        self._layers(self._gates[-2:-1], self._label_row, h, c)

    def scores(self, encoded: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        last = len(self._arena.descriptions) - 1
        inputs = self.recognizer.output.bias, encoded, predicted, *self._rooms, self._scores
        matvec.joiner_scores(self._gates[-1], last, *self._weights, *inputs)  # type: ignore[call-arg]
        return self._scores.copy()

    def _layers(self, gates: np.ndarray, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> None:
        matvec.lstm_layers(gates, *self._weights, x, h, c, *self._rooms)  # type: ignore[call-arg]


def _constants(gates: tuple[Gates, ...]) -> tuple[np.ndarray, ...]:
    """Both multipliers int32, biases int64 with half a unit of their shift added, shifts int8; of all gates."""
    multipliers = [np.concatenate([getattr(g, f"{of}_multiplier") for g in gates]) for of in ("input", "state")]
    bias = np.concatenate([g.bias + ((1 << g.shift) >> 1) for g in gates])
    shift = np.concatenate([g.shift for g in gates])
    return np.array(multipliers, np.int32), bias.astype(np.int64), shift.astype(np.int8)


def _rooms(descriptions: np.ndarray) -> tuple[np.ndarray, ...]:
    """Room for two padded inputs, two rows of accumulators and one of gates."""
    rows, columns = (int(descriptions[:, column].max()) for column in (matvec.COUNT, matvec.WIDTH))
    width = -(-max(rows, columns) // 32) * 32  # the joiner's rows are an input again
    return np.zeros((2, width), np.int8), np.zeros((3, -(-rows // 16) * 16), np.int32)
