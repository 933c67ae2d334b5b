"""The record of an annealing: what it holds, that it comes back, and that each finding finds its own fault only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kwsbench.quantizers import HARD_SHARE, general
from kwsbench.quantizers.annealing import (
    SURE,
    AnnealingRecord,
    AnnealingWatch,
    findings,
    snapshot_steps,
)
from kwsbench.quantizers.general import GeneralWeight, compand

STEPS = 160


def anneal(bits, monkeypatch, sharpness=general.SHARPNESS, change=None):
    """A layer that learns a little, so that its weights go where the schedule takes them: its record, soft to hard."""
    monkeypatch.setattr(general.GeneralWeight, "schedule", sharpness)
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(48, 64, generator=generator) * 0.1
    quantizer = GeneralWeight(target, bits).train()
    if change is not None:
        change(quantizer)
    optimizer = torch.optim.Adam(quantizer.parameters())
    watch = AnnealingWatch({"layer": quantizer}, STEPS)
    for step in range(STEPS):
        rate = 2e-5 * (1 - step / STEPS)
        optimizer.param_groups[0]["lr"] = rate
        quantizer.anneal(step, STEPS)
        if watch.due(step):
            watch.observe(step, rate)
        x = torch.randn(64, 64, generator=generator)
        loss = ((x @ (quantizer.quantized() - target).T) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    quantizer.anneal(STEPS, STEPS)
    watch.observe(STEPS, 0.0)
    return watch.record()


def kinds(record):
    return {f.kind for f in findings(record)}


@torch.no_grad()
def far_away(quantizer):
    quantizer.centroids[0] = -3.0


@torch.no_grad()
def together(quantizer):
    quantizer.centroids[1:] = quantizer.centroids[1:].mean() + 1e-5 * torch.arange(len(quantizer.centroids) - 1)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_good_run_has_no_findings(bits, monkeypatch):
    assert findings(anneal(bits, monkeypatch)) == []


@pytest.mark.parametrize("bits", [2, 4])
def test_a_softmax_that_is_hard_at_once_is_too_fast(bits, monkeypatch):
    found = findings(anneal(bits, monkeypatch, sharpness=(200.0, 2000.0)))
    assert {f.kind for f in found} == {"too fast"}
    assert "at step 0 of 160 only" in found[0].message and "100% of its peak" in found[0].message


def test_a_softmax_that_stays_soft_is_too_slow(monkeypatch):
    record = anneal(2, monkeypatch, sharpness=(2.0, 4.0))
    (found,) = findings(record)
    assert found.kind == "too slow" and found.layer == "layer"
    layer = record.layers["layer"]
    last = np.flatnonzero(np.isfinite(layer.sharpness))[-1]
    assert f"jump by {layer.gap[last]:.0%} of their norm" in found.message


def test_a_centroid_far_from_all_weights_is_dead(monkeypatch):
    (found,) = [f for f in findings(anneal(2, monkeypatch, change=far_away)) if f.kind == "dead centroid"]
    assert found.message.startswith("centroid 0 of 4") and "serves 0.00% of the weights" in found.message


def test_centroids_in_one_place_are_a_collapse(monkeypatch):
    found = [f for f in findings(anneal(3, monkeypatch, change=together)) if f.kind == "collapse"]
    assert len(found) == 1 and "are left of 8 (2 at the start)" in found[0].message


def test_layers_with_few_weights_are_not_judged_by_their_levels(monkeypatch):
    record = anneal(2, monkeypatch, change=far_away)
    layer = record.layers["layer"]
    small = replace(record, layers={"layer": replace(layer, weights=np.full_like(layer.weights, 399))})
    assert "dead centroid" in kinds(record) and "dead centroid" not in kinds(small)


def test_snapshots_say_what_the_quantizer_is_at_that_moment():
    quantizer = GeneralWeight(torch.randn(20, 30, generator=torch.Generator().manual_seed(1)), 3)
    quantizer.anneal(60, 100)
    watch = AnnealingWatch({"layer": quantizer}, 100)
    watch.observe(60, 0.5)
    layer = watch.record().layers["layer"]
    z = quantizer.centroids.detach().double().sort().values
    y = compand(
        (quantizer.weight / torch.exp(quantizer.log_scale)[:, None]).detach().double(), quantizer.mu.detach().double()
    )
    # Independently of the two-neighbour softmax: over all centroids, from their distances.
    distance = (y[..., None] - z).abs() / ((z[-1] - z[0]) / 7)
    share = torch.softmax(-quantizer.sharpness * distance, -1).max(-1).values
    assert layer.undecided[0] == pytest.approx(float((share < SURE).double().mean()), abs=0.01)
    book, codes = quantizer.codebook, quantizer.codes().detach().numpy()
    assert np.array_equal(layer.levels[0], book.levels)
    assert np.array_equal(layer.usage[0], [(codes == c).mean() for c in book.codes])
    probabilities = layer.usage[0][layer.usage[0] > 0]
    assert layer.entropy_bits[0] == pytest.approx(-(probabilities * np.log2(probabilities)).sum())
    hard = quantizer.eval().quantized().detach()
    soft = quantizer.train().quantized().detach()
    assert layer.gap[0] == pytest.approx(float((soft - hard).norm() / hard.norm()), rel=1e-5)
    assert (layer.mu[0], layer.sharpness[0], layer.distinct[0]) == (
        float(quantizer.mu.detach()),
        quantizer.sharpness,
        8,
    )


def test_cells_that_changed_and_centroids_that_moved_are_counted_between_snapshots():
    quantizer = GeneralWeight(torch.linspace(-1, 1, 600).reshape(20, 30), 2)
    watch = AnnealingWatch({"layer": quantizer}, 100)
    watch.observe(0, 1.0)
    before = quantizer.codes().detach().clone()
    z = quantizer.centroids.detach().clone()
    with torch.no_grad():
        quantizer.weight[:5] *= -1
        quantizer.centroids[3] += 0.5 * (z[3] - z[0]) / 3
    watch.observe(1, 1.0)
    layer = watch.record().layers["layer"]
    signs = (torch.sign(before) != torch.sign(quantizer.codes().detach())).float().mean()
    assert layer.changed[0] == 0 and layer.changed[1] >= float(signs) > 0.2
    assert layer.movement == pytest.approx([0.5], rel=1e-4)


@pytest.mark.parametrize("steps", [1, 7, 60, 500, 2000])
def test_snapshot_steps_hold_the_start_and_both_sides_of_the_hard_phase(steps):
    due = snapshot_steps(steps)
    hard = min(s for s in range(steps + 1) if s >= HARD_SHARE * steps)
    assert due <= set(range(steps)) and {0, max(0, hard - 1), min(hard, steps - 1)} <= due
    assert len(due) <= 42 and (steps < 100 or len(due) >= 40)


def test_a_record_comes_back_from_its_file_and_bad_files_are_refused(tmp_path, monkeypatch):
    record = anneal(1, monkeypatch)
    record.save(tmp_path / "a.npz")
    again = AnnealingRecord.load(tmp_path / "a.npz")
    ours, theirs = record.arrays(), again.arrays()
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"b\.npz is truncated or no annealing record"):
        AnnealingRecord.load(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", steps=3)
    with pytest.raises(ValueError, match="no annealing record"):
        AnnealingRecord.load(tmp_path / "c.npz")
    with pytest.raises(FileNotFoundError):
        AnnealingRecord.load(tmp_path / "d.npz")
