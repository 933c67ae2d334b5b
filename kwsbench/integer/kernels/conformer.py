"""One frame of a Conformer encoder in Numba: integer matrices by matvec.py, the rest in float32 loops
(docs/arithmetic.md, section 10).

The frame's function is made anew in Numba's cache when matvec.py, which it calls, changes: a number made from that
file's text is part of it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numba import njit

from kwsbench.integer.kernels import matvec
from kwsbench.integer.kernels.matvec import COUNT, WIDTH, _multiply

# Order of a block's matrices, norms and cache scales.
UP, DOWN, QUERY, KEY, VALUE, MIXED, GATED, FILTERED, UP_AGAIN, DOWN_AGAIN = range(10)
FIRST, ATTEND, CONVOLVE, INNER, SECOND, LAST = range(6)
KEYS, VALUES, HISTORY = range(3)


@njit
def _to_int8(x, scale, out):
    """``clamp(round(x / scale), -127, 127)``, as arithmetic.fixedpoint rounds."""
    for n in range(len(x)):
        v = x[n] / scale
        below = np.floor(v)
        if v - below >= np.float32(0.5):
            below += np.float32(1)
        out[n] = np.int8(min(max(below, np.float32(-127)), np.float32(127)))


@njit
def _linear(n, weights, x, out):
    """Matrix ``n`` of float32 ``x``, through integers, to ``out``; returns its rows.

    ``weights``: descriptions and memory of all matrices, scales of inputs, first rows, units and biases of all rows,
    and room for an input and for accumulators.
    """
    matrices, arena, scales, starts, units, biases, codes, acc = weights
    m = matrices[n]
    _to_int8(x[: m[WIDTH]], scales[n], codes)
    codes[m[WIDTH] : (m[WIDTH] + 31) // 32 * 32] = np.int8(0)
    _multiply(m, arena, codes, acc)
    unit, bias = units[starts[n] : starts[n] + m[COUNT]], biases[starts[n] : starts[n] + m[COUNT]]
    for k in range(m[COUNT]):
        out[k] = np.float32(acc[k]) * unit[k] + bias[k]
    return m[COUNT]


@njit
def _norm(x, weight, bias, out):
    total = np.float32(0)
    for v in x:
        total += v
    mean, squares = total / np.float32(len(x)), np.float32(0)
    for v in x:
        squares += (v - mean) * (v - mean)
    root = np.sqrt(squares / np.float32(len(x)) + np.float32(1e-5))
    for k in range(len(x)):
        out[k] = (x[k] - mean) / root * weight[k] + bias[k]


@njit
def _sigmoid(v):
    return np.float32(1) / (np.float32(1) + np.exp(-v))


@njit
def _swish(x):
    for k in range(len(x)):
        x[k] = x[k] * _sigmoid(x[k])


@njit
def _attend(query, keys, values, key_scale, value_scale, distance, seen, weights, out):
    """Attention of the present frame (the last place) to ``keys``, ``values`` int8 [places, width]."""
    heads, places = distance.shape
    size = len(query) // heads
    root = np.float32(np.sqrt(np.float32(size)))
    for head in range(heads):
        begin = head * size
        peak = np.float32(-np.inf)
        for p in range(places - 1 - seen, places):
            score = np.float32(0)
            for d in range(begin, begin + size):
                score += query[d] * (np.float32(keys[p, d]) * key_scale)
            weights[p] = score / root + distance[head, places - 1 - p]
            peak = max(peak, weights[p])
        total = np.float32(0)
        for p in range(places - 1 - seen, places):
            weights[p] = np.exp(weights[p] - peak)
            total += weights[p]
        out[begin : begin + size] = np.float32(0)
        for p in range(places - 1 - seen, places):
            share = weights[p] / total
            for d in range(begin, begin + size):
                out[d] += share * (np.float32(values[p, d]) * value_scale)


@njit
def _moved_on(cache, x, scale):
    """A cache with room for the present: the oldest leaves, ``x`` comes last as int8."""
    for p in range(len(cache) - 1):
        cache[p] = cache[p + 1]
    _to_int8(x, scale, cache[len(cache) - 1])


@njit
def _add(y, x, factor):
    for k in range(len(y)):
        y[k] += factor * x[k]


@njit
def _feedforward(y, norm, up, down, weights, rooms):
    """``y += FF(y) / 2``."""
    width, a, b = len(y), rooms[1], rooms[2]
    _norm(y, norm[0], norm[1], a[:width])
    count = _linear(up, weights, a, b)
    _swish(b[:count])
    _linear(down, weights, b, a)
    _add(y, a, np.float32(0.5))


@njit
def _attention(y, norm, at, weights, keys, values, kept, distance, seen, rooms):
    """``y += attention(y)``."""
    width, a, b, c = len(y), rooms[1], rooms[2], rooms[3]
    _norm(y, norm[0], norm[1], a[:width])
    _linear(at + KEY, weights, a, b)
    _moved_on(keys, b[:width], kept[KEYS])
    _linear(at + VALUE, weights, a, b)
    _moved_on(values, b[:width], kept[VALUES])
    _linear(at + QUERY, weights, a, b)
    _attend(b[:width], keys, values, kept[KEYS], kept[VALUES], distance, seen, rooms[4], c[:width])
    _linear(at + MIXED, weights, c, b)
    _add(y, b, np.float32(1))


@njit
def _convolution(y, norm, inner, at, weights, history, scale, depthwise, bias, rooms):
    """``y += convolution(y)``."""
    width, a, b, c = len(y), rooms[1], rooms[2], rooms[3]
    _norm(y, norm[0], norm[1], a[:width])
    _linear(at + GATED, weights, a, b)
    for k in range(width):
        c[k] = b[k] * _sigmoid(b[width + k])
    _moved_on(history, c[:width], scale)
    a[:width] = np.float32(0)
    for tap in range(len(depthwise)):
        for k in range(width):
            a[k] += np.float32(history[tap, k]) * scale * depthwise[tap, k]
    _add(a[:width], bias, np.float32(1))
    _norm(a[:width], inner[0], inner[1], c[:width])
    _swish(c[:width])
    _linear(at + FILTERED, weights, c, b)
    _add(y, b, np.float32(1))


def _make(source):
    def frame(
        x, weights, norms, distance, depthwise, bias, kept, output_scale, keys, values, history, seen, rooms, out
    ):
        """Joined frame float32 [K] -> int8 [width] in ``out``. Caches int8 ``[blocks, places, width]``, whose last
        place is for the present, are moved on in place. ``weights``: what ``_linear`` takes; ``rooms`` float32 [5,
        widest]."""
        _version = source
        y = rooms[0, : norms.shape[3]]
        _linear(0, weights, x, y)
        for n in range(len(norms)):
            at, norm = 1 + 10 * n, norms[n]
            _feedforward(y, norm[FIRST], at + UP, at + DOWN, weights, rooms)
            _attention(y, norm[ATTEND], at, weights, keys[n], values[n], kept[n], distance[n], seen, rooms)
            scale = kept[n, HISTORY]
            _convolution(y, norm[CONVOLVE], norm[INNER], at, weights, history[n], scale, depthwise[n], bias[n], rooms)
            _feedforward(y, norm[SECOND], at + UP_AGAIN, at + DOWN_AGAIN, weights, rooms)
            _norm(y, norm[LAST, 0], norm[LAST, 1], rooms[1, : len(y)])
            y[:] = rooms[1, : len(y)]
        _to_int8(y, output_scale, out)

    return njit(cache=True)(frame)


conformer_frame = _make(int(hashlib.sha256(Path(matvec.__file__).read_bytes()).hexdigest()[:12], 16))
