import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kwsbench.arithmetic.codebook import (
    Codebook,
    NotIntegerLevels,
    check_bits,
    integer_codebook,
    integer_form,
    midpoint_codebook,
)
from kwsbench.arithmetic.fixedpoint import round_half_up
from kwsbench.quantizers import CODEBOOKS

EVERY = [(name, bits) for name in CODEBOOKS for bits in range(1, 9)]


def brute_force(codebook: Codebook, x: float) -> float:
    """Nearest level by exhaustive distance in exact float64; a tie takes the upper level."""
    distance = np.abs(codebook.levels - x)
    return float(codebook.levels[np.flatnonzero(distance == distance.min())[-1]])


@pytest.mark.parametrize("name, bits", EVERY)
def test_codebooks_of_all_quantizers_obey_the_laws(name, bits):
    book = CODEBOOKS[name](bits)
    assert len(book.levels) == (255 if bits == 8 else 2**bits)
    assert book.bits == bits
    # A level encodes to itself.
    assert np.array_equal(book.quantize(book.levels), book.levels)
    step, codes = integer_form(book)
    assert codes.dtype == np.int8
    assert np.array_equal(codes * step, book.levels)
    assert np.max(np.abs(codes.astype(int))) <= 127 or name == "linear"


@pytest.mark.parametrize("name, bits", EVERY)
def test_thresholds_take_the_upper_level_and_one_ulp_below_the_lower(name, bits):
    book = CODEBOOKS[name](bits)
    at = book.encode(book.thresholds)
    below = book.encode(np.nextafter(book.thresholds, -np.inf))
    assert np.array_equal(at, np.arange(1, len(book.levels)))
    assert np.array_equal(below, np.arange(len(book.levels) - 1))


@given(st.sampled_from(EVERY), st.floats(-200, 200))
def test_encoding_is_nearest_by_brute_force(which, x):
    book = CODEBOOKS[which[0]](which[1])
    got = float(book.quantize(np.array([x]))[0])
    # Off the ties the brute force decides; within an ulp of a tie both neighbours are at equal distance.
    assert abs(abs(got - x) - abs(brute_force(book, x) - x)) <= 1e-13


def test_torch_and_numpy_encode_alike():
    x = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    for name, bits in EVERY:
        book = CODEBOOKS[name](bits)
        scaled = x * np.float32(np.max(book.levels))
        assert np.array_equal(book.encode(scaled), book.encode(torch.from_numpy(scaled)).numpy())
        assert np.array_equal(book.encode_codes(scaled), book.encode_codes(torch.from_numpy(scaled)).numpy())


def test_the_linear_fast_path_equals_the_codebook_at_every_threshold():
    """``clip(round_half_up(x))``, used for inputs, against the 8-bit codebook one ulp either side."""
    book = integer_codebook(np.arange(-128, 128), 1.0)
    for x in (book.thresholds, book.levels):
        x = x.astype(np.float32)
        for probe in (x, np.nextafter(x, np.float32(-np.inf)), np.nextafter(x, np.float32(np.inf))):
            fast = np.clip(round_half_up(probe), -128, 127)
            assert np.array_equal(fast, book.quantize(probe))


def test_levels_off_an_integer_grid_are_refused_with_the_nearest_step():
    with pytest.raises(NotIntegerLevels, match=r"nearest step is .* largest error") as caught:
        integer_form(midpoint_codebook(np.array([-1.0, -0.3137, 0.2, 1.0])))
    assert 0 < caught.value.error < 0.01
    assert caught.value.step > 0


def test_integer_levels_are_found_without_being_told():
    step, codes = integer_form(midpoint_codebook(np.array([-0.75, -0.25, 0.5])))
    assert np.allclose(step * codes, [-0.75, -0.25, 0.5], rtol=0, atol=1e-12)
    step, codes = integer_form(midpoint_codebook(np.array([-1.26, 0.01, 1.27])))
    assert codes.tolist() == [-126, 1, 127]


@pytest.mark.parametrize("bits", [0, 9, -1, 2.5, "4", True, None])
def test_bits_outside_1_to_8_are_refused(bits):
    with pytest.raises(ValueError, match=r"bits must be an integer from 1 to 8, got"):
        check_bits(bits)


@pytest.mark.parametrize(
    "levels, thresholds, message",
    [
        ([1.0], [], "2 to 256 levels"),
        ([0.0, 1.0], [], "need 1 thresholds"),
        ([1.0, 0.0], [0.5], "sorted"),
        ([0.0, 1.0], [2.0], "between its two levels"),
    ],
)
def test_malformed_codebooks_are_refused(levels, thresholds, message):
    with pytest.raises(ValueError, match=message):
        Codebook(np.array(levels), np.array(thresholds))
