"""Mixed widths under FLASH and RAM: exact against brute force, and exact against what a lowered program needs."""

import itertools

import numpy as np
import pytest
import torch

from kwsbench.integer.lower_convolutional import lower_convolutional
from kwsbench.models.layers import Add, Conv, Front, Network, Output, Pool
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.quantizers.budget import (
    Allocation,
    ImpossibleBudget,
    Limits,
    choose,
    flash_bytes,
    ram_bytes,
    sensitivities,
    streaming_moments,
    whole_moments,
)
from kwsbench.quantizers.convolutional import ConvPlan, QuantizedConvNet, activated, weighted
from kwsbench.resources.convolutional import needs
from tests.quantizers.conv_nets import RAW, SPECTRAL, heard, made

SMALL = Network(
    Front("lfbe", 5, 400, 160),
    ("a", "b"),
    (Conv("c", 1, 4, (3, 5)), Conv("d", 4, 4, relu=False), Add("s", "c"), Pool("p", 6), Output("o", 4, 2)),
)


def tensors(network):
    return [f"{n}.weight" for n in weighted(network)] + [f"{n}.output" for n in activated(network)]


def table(network, seed, widths=(2, 4, 8)):
    """Made-up losses, falling with the bits but for some noise."""
    rng = np.random.default_rng(seed)
    return {
        name: {b: float(0.4 + rng.gamma(1.0) * 2.0**-b + 0.002 * rng.normal()) for b in widths}
        for name in tensors(network)
    }


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("moments", [streaming_moments, whole_moments])
def test_the_choice_is_that_of_brute_force(moments, seed):
    losses, rooms, rng = table(SMALL, seed), moments(SMALL), np.random.default_rng(seed)
    names = tensors(SMALL)
    every = [dict(zip(names, bits)) for bits in itertools.product((2, 4, 8), repeat=len(names))]
    flash = {id(w): flash_bytes(SMALL, w, "lsq") for w in every[:: 3 ** len(activated(SMALL))]}
    rams = [ram_bytes(rooms, w) for w in every[: 3 ** len(activated(SMALL))]]
    limits = Limits(
        int(rng.integers(min(flash.values()), max(flash.values()))), int(rng.integers(min(rams), max(rams))), rooms
    )
    per_activations = 3 ** len(activated(SMALL))
    fits = [
        w
        for i, w in enumerate(every)
        if rams[i % per_activations] <= limits.ram_bytes
        and flash[id(every[i // per_activations * per_activations])] <= limits.flash_bytes
    ]
    best = min(sum(losses[n][b] for n, b in w.items()) for w in fits)
    found = choose(SMALL, losses, limits)
    assert sum(losses[n][b] for n, b in found.widths.items()) == pytest.approx(best, abs=1e-9)
    assert found.widths in fits
    assert found.flash_bytes == flash_bytes(SMALL, found.widths, "lsq") <= limits.flash_bytes
    assert found.ram_bytes == ram_bytes(rooms, found.widths) <= limits.ram_bytes
    assert found.rise == pytest.approx(best - sum(losses[n][8] for n in names))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("network", [SPECTRAL, RAW, SMALL], ids=["spectral", "raw", "small"])
def test_a_lowered_program_needs_that_ram_and_at_most_that_flash(network, seed):
    rng = np.random.default_rng(seed)
    widths = {name: int(rng.choice([2, 4, 8])) for name in tensors(network)}
    plan = Allocation(widths, "tanh", 0.0, 0, 0).plan(per_channel=True)
    model = QuantizedConvNet(made(network), plan)
    model.calibrate(heard(network))
    model.replan(plan.exact())
    assert model.widths() == widths
    counted = needs(lower_convolutional(model), samples=16000)
    assert ram_bytes(streaming_moments(network), widths) == counted.ram_streaming_bytes
    assert ram_bytes(whole_moments(network), widths) == counted.ram_whole_bytes
    channels = sum(layer.outputs for layer in network.layers if isinstance(layer, Conv | Output))
    assert counted.flash_bytes <= flash_bytes(network, widths, "tanh") <= counted.flash_bytes + 6 * channels + 40


def test_an_impossible_budget_names_the_smallest_that_is_not():
    losses, rooms = table(SPECTRAL, 0), streaming_moments(SPECTRAL)
    narrowest = dict.fromkeys(tensors(SPECTRAL), 2)
    flash, ram = flash_bytes(SPECTRAL, narrowest, "lsq"), ram_bytes(rooms, narrowest)
    assert choose(SPECTRAL, losses, Limits(flash, ram, rooms)).ram_bytes == ram
    for limits in (Limits(flash - 1, ram, rooms), Limits(flash, ram - 1, rooms)):
        with pytest.raises(ImpossibleBudget, match=f"the smallest within reach are {flash} of FLASH and {ram} of RAM"):
            choose(SPECTRAL, losses, limits)


def test_a_budget_without_need_takes_the_least_loss():
    losses = table(SPECTRAL, 1)
    found = choose(SPECTRAL, losses, Limits(10**7, 10**7, whole_moments(SPECTRAL)))
    assert found.widths == {name: min(row, key=row.get) for name, row in losses.items()}


def test_a_table_that_does_not_fit_the_network_is_refused():
    losses = table(SPECTRAL, 1)
    del losses["head.output"]
    with pytest.raises(ValueError, match=r"one row per tensor; head\.output is missing or unknown"):
        choose(SPECTRAL, losses, Limits(10**7, 10**7, whole_moments(SPECTRAL)))


def test_sensitivities_are_losses_of_one_narrow_tensor_and_lead_to_a_plan():
    net, x = made(SMALL), heard(SMALL, batch=32)
    with torch.no_grad():
        labels = net.train()(x).argmax(1)
    losses = sensitivities(net, x, x, labels)
    assert list(losses) == tensors(SMALL)
    assert len({row[8] for row in losses.values()}) == 1
    model = QuantizedConvNet(net, ConvPlan(WeightPlan("lsq", 8), 8, (("d", WeightPlan("lsq", 2)),)))
    model.calibrate(x)
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(model.eval()(x).double(), labels)
    assert losses["d.weight"][2] == pytest.approx(float(expected), abs=1e-12)
    # Two bits hurt on the whole, four hardly.
    rises = {b: sum(row[b] - row[8] for row in losses.values()) for b in (2, 4)}
    assert rises[2] > abs(rises[4])
    rooms = streaming_moments(SMALL)
    middle = dict.fromkeys(tensors(SMALL), 4)
    found = choose(SMALL, losses, Limits(flash_bytes(SMALL, middle, "lsq"), ram_bytes(rooms, middle), rooms))
    assert QuantizedConvNet(net, found.plan()).widths() == found.widths
    assert found.rise <= rises[4] + 1e-12
