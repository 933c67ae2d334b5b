"""What quantization does to weights, against theory and counts by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kwsbench.arithmetic.codebook import integer_codebook
from kwsbench.quantizers import QUANTIZERS
from kwsbench.quantizers.scales import sqnr_db
from kwsbench.quantizers.usage import (
    best_scale,
    code_counts,
    companding_rows,
    entropy_bits,
    layer_counts,
    layer_rows,
    response,
    spread_rows,
    sqnr_rows,
)

RNG = np.random.default_rng(0)
GAUSSIAN = RNG.normal(size=(20, 1000))


@pytest.mark.parametrize("method", list(QUANTIZERS))
@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
def test_a_response_is_a_staircase_that_stays_near_its_latent(method, bits):
    x = np.linspace(-2, 2, 801)
    r = response(method, bits, x)
    assert len(np.unique(r.output)) <= 2**bits and r.output.max() <= 1
    assert np.all(np.diff(r.output) >= 0)
    inside = np.abs(x) < 0.99
    half_step = np.diff(np.unique(r.output)).max() / 2
    if method in ("general", "general_hard", "general_slow"):
        # Thresholds are halfway in the companded space, the outer centroids within the range.
        half_step *= 1.5
    assert np.abs(r.output - r.latent)[inside].max() <= half_step + 1e-6


def test_gradients_are_those_of_the_formulas():
    x = np.linspace(-2, 2, 401)
    np.testing.assert_allclose(response("tanh", 4, x).gradient, 1 - np.tanh(x) ** 2, atol=1e-6)
    linear = response("linear", 4, x).gradient  # codes -8..7 on a range of 1: clipped beyond -8/7 and 1
    np.testing.assert_allclose(linear[(x > -8 / 7 + 0.01) & (x < 0.99)], 1, rtol=1e-6)
    assert np.all(linear[(x < -8 / 7 - 0.01) | (x > 1.01)] == 0)
    dorefa = response("dorefa", 4, x).gradient
    inner = slice(1, -1)  # the largest weights also carry the scale
    np.testing.assert_allclose(dorefa[inner], (1 - np.tanh(x[inner]) ** 2) / np.tanh(2), atol=1e-6)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=64).filter(any))
def test_entropy_lies_between_nothing_and_all_codes(counts):
    counts = np.array(counts)
    assert -1e-9 <= entropy_bits(counts) <= np.log2(len(counts)) + 1e-9
    assert entropy_bits(np.repeat(counts, 2)) == pytest.approx(entropy_bits(counts) + 1)


def test_the_entropy_of_nothing_is_refused():
    with pytest.raises(ValueError, match="every count is 0"):
        entropy_bits(np.zeros(4))


def test_codes_are_counted():
    book = integer_codebook(np.array([-1, 0, 1, 2]), 0.5)
    assert code_counts(book, np.array([[-9.0, 0.1], [0.2, 0.9]])).tolist() == [1, 2, 0, 1]


def test_fixed_gaussian_weights_keep_what_theory_says():
    """Best clip of the odd grid: 19.4, 24.6 and 40.5 dB at 4, 5 and 8 bits; one bit leaves 1 - 2/pi."""
    rows = {row["width"]: row for row in sqnr_rows(GAUSSIAN, [8, 5, 4, 1])}
    for width, expected in ((8, 40.5), (5, 24.6), (4, 19.4), (1, -10 * np.log10(1 - 2 / np.pi))):
        assert rows[width]["tanh, best_db"] == pytest.approx(expected, abs=0.6 if width == 8 else 0.15)
    for row in rows.values():
        for grid in ("linear", "tanh"):
            assert row[f"{grid}, best_db"] >= row[f"{grid}, max-abs_db"] - 1e-9
            assert row[f"{grid}, best per row_db"] >= row[f"{grid}, best_db"] - 0.05
    scaled = sqnr_rows(GAUSSIAN * np.geomspace(0.1, 10, 20)[:, None], [4])[0]
    assert scaled["tanh, best per row_db"] == pytest.approx(rows[4]["tanh, best per row_db"], abs=0.5)
    assert scaled["tanh, best_db"] < scaled["tanh, best per row_db"] - 1


@pytest.mark.parametrize("step", [0.3, 1.0])
def test_the_best_scale_of_two_levels_is_the_mean_magnitude(step):
    scale = best_scale(GAUSSIAN, integer_codebook(np.array([-1, 1]), step), per_channel=False)
    assert scale * step == pytest.approx(np.abs(GAUSSIAN).mean())


def test_spread_tells_when_codes_are_used_evenly():
    rows = spread_rows([3], [0.05, 0.9, 50.0], GAUSSIAN)[3]
    narrow, even, wide = (row["entropy_bits"] for row in rows)
    assert even > 2.9 and narrow < 1.2 and wide < 1.2, "3 bits evenly; two inner codes; two outer codes"
    uniform = spread_rows([5], [0.8], GAUSSIAN)[5][0]
    assert uniform["sqnr_db"] == pytest.approx(30, abs=1.5)  # 6 dB per bit of nearly uniform values


@pytest.mark.parametrize("method", list(QUANTIZERS))
def test_layers_are_described_by_counts_of_their_codes(method):
    weight = torch.as_tensor(GAUSSIAN, dtype=torch.float32)
    quantizers = {"a": QUANTIZERS[method](weight, 3), "b": QUANTIZERS[method](weight, 1)}
    a, b = layer_rows(quantizers, {"a": GAUSSIAN, "b": GAUSSIAN})
    counts = layer_counts(quantizers["a"])
    assert counts.sum() == weight.numel() and a["codes"] == 8
    codes = quantizers["a"].codes().detach().numpy()
    assert counts.tolist() == [int(np.sum(codes == c)) for c in quantizers["a"].codebook.codes]
    assert a["codes_used"] == np.count_nonzero(counts) and a["entropy_bits"] == entropy_bits(counts)
    assert a["sqnr_db"] > 5 and b["sqnr_db"] is None
    assert b["sqnr_to_float_db"] == pytest.approx(4.4, abs=0.1)


def test_companding_pays_where_weights_are_many_around_zero():
    """mu -> 0 is the odd linear grid; Laplace weights want their levels closer together around zero."""
    weights = np.random.default_rng(0).laplace(size=(40, 300))
    even, some, strong = companding_rows(weights, 5, [1e-6, 10.0, 255.0])
    odd = integer_codebook(np.arange(-31, 32, 2), 1 / 31)
    scale = best_scale(weights, odd, False)[0]
    assert even["sqnr_db"] == pytest.approx(sqnr_db(weights, scale * odd.quantize(weights / scale)), abs=1e-6)
    assert some["sqnr_db"] > even["sqnr_db"] + 1
    assert even["distinct"] == some["distinct"] == 32 and strong["distinct"] < 32
