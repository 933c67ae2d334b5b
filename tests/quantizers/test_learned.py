"""Networks that learn their own widths: the budget moves them, freezing changes nothing, the program has them."""

import pytest
import torch
from torch.nn import functional as F

from kwsbench.integer.lower_convolutional import lower_convolutional
from kwsbench.models.layers import Add, Conv, Front, Network, Output, Pool
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.quantizers.convolutional import ConvPlan, elements, mean_bits
from kwsbench.quantizers.learned import (
    LEARNERS,
    Budget,
    CollapsedWidth,
    LearnedConvNet,
    Pressure,
    budget_of_mean_bits,
    smallest_kb,
)
from kwsbench.resources.convolutional import needs
from tests.quantizers.conv_nets import LABELS, RAW, SPECTRAL, heard, made

FREE = Budget(None)
TOY = Network(
    Front("mfcc", 6, 640, 320),
    LABELS,
    (
        Conv("stem", 1, 6, (3, 6)),
        Conv("middle", 6, 6, relu=False),
        Add("sum", "stem"),
        Pool("pool", 8),
        Output("o", 6, 3),
    ),
)


def task(batch, seed):
    """Which third of the bins is louder: learned in a few steps."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (batch,), generator=generator)
    x = torch.randn(batch, 8, 6, generator=generator)
    for clip, label in zip(x, labels.tolist()):
        clip[:, 2 * label : 2 * label + 2] += 1
    return x, labels


def trained(learner, sizes, steps=40):
    net = made(TOY)
    model = LearnedConvNet(net, learner, sizes)
    model.calibrate(task(64, 99)[0])
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-2)
    for step in range(steps):
        model.anneal(step, steps)
        x, labels = task(32, step)
        loss = F.cross_entropy(model(x), labels) + step / steps * model.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.anneal(steps, steps)
    return model.eval()


@pytest.fixture(scope="module")
def models():
    budgets = {
        "free": FREE,
        "wide": budget_of_mean_bits(TOY, 5, 5),
        "narrow": budget_of_mean_bits(TOY, 2.5, 2.5),
    }
    return {(learner, name): trained(learner, b) for learner in LEARNERS for name, b in budgets.items()}


@pytest.mark.parametrize("learner", LEARNERS)
def test_half_the_budget_makes_narrower_layers_and_none_keeps_them_wide(models, learner):
    mean = {name: mean_bits(TOY, models[learner, name].widths()) for name in ("free", "wide", "narrow")}
    for what in ("weights", "activations"):
        assert mean["free"][what] > 6 > mean["wide"][what] > mean["narrow"][what] + 1
        assert mean["wide"][what] < 5.6 and mean["narrow"][what] < 3.3
    assert len(set(models["width", "narrow"].widths().values())) > 2  # each tensor its own


@pytest.mark.parametrize("name", ["wide", "narrow"])
@pytest.mark.parametrize("learner", LEARNERS)
def test_freezing_keeps_every_value_and_the_program_has_the_widths(models, learner, name):
    model = models[learner, name]
    x, labels = task(200, 1000)
    fixed = model.freeze(x)
    before, after = {}, {}
    with torch.no_grad():
        model.step(x, model.fresh(200), before)
        fixed.step(x, fixed.fresh(200), after)
        assert list(before) == list(after) and all(torch.equal(before[k], after[k]) for k in before)
        if name == "wide":  # few bits need more than these few steps
            assert float((fixed(x).argmax(1) == labels).float().mean()) > 0.8
    assert fixed.widths() == model.widths()
    assert ConvPlan.from_json(fixed.plan.to_json()) == fixed.plan and not fixed.integer
    fixed.replan(fixed.plan.exact())
    program = lower_convolutional(fixed)
    widths, counted = mean_bits(TOY, model.widths()), needs(program)
    assert widths["weights"] == pytest.approx(counted.bits_per_weight)
    assert widths["activations"] == pytest.approx(counted.bits_per_activation)
    for operation in program.operations:
        if hasattr(operation, "codes"):
            assert len(set(operation.codes.ravel().tolist())) <= 2 ** fixed.widths()[f"{operation.name}.weight"]
    if name == "wide":
        with torch.no_grad():
            assert float((fixed(x).argmax(1) == labels).float().mean()) > 0.75


def test_a_frozen_model_trains_on_and_keeps_its_widths(models):
    fixed = models["width", "narrow"].freeze().train()
    x, labels = task(64, 5)
    fixed.replan(fixed.plan.exact())
    F.cross_entropy(fixed(x), labels).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in fixed.parameters())
    assert fixed.widths() == models["width", "narrow"].widths()


def test_sizes_and_penalties_by_their_equations():
    model = LearnedConvNet(made(SPECTRAL), "width", FREE, bits=8)
    counts, widths = elements(SPECTRAL), model.widths()
    weight_kb, activation_kb = (float(kb.detach()) for kb in model.kilobytes())
    assert weight_kb == pytest.approx(sum(n * widths[k] for k, n in counts.items() if k.endswith("weight")) / 8000)
    assert activation_kb == pytest.approx(sum(n * widths[k] for k, n in counts.items() if k.endswith("output")) / 8000)
    assert float(model.penalty().detach()) == 0
    model.sizes = Budget(weight_kb / 2, activation_kb * 2, force=3.0)
    assert float(model.penalty().detach()) == pytest.approx(3.0)
    model.sizes = Budget(None, activation_kb / 3)
    model.penalty().backward()
    assert model.activation("head").range.step_pace.grad < 0 < model.activation("head").range.peak_pace.grad
    assert model.quantizer("head").range.step_pace.grad is None or model.quantizer("head").range.step_pace.grad == 0
    model.sizes = Pressure(2.0, 5.0)
    assert float(model.penalty().detach()) == pytest.approx((2 * weight_kb + 5 * activation_kb) / 1000)


def test_widths_are_told_before_and_after_rounding():
    model = LearnedConvNet(made(RAW), "diffq", FREE, bits=5)
    soft, whole = model.soft_widths(), model.widths()
    assert list(soft) == list(whole) == list(elements(RAW))
    assert all(abs(soft[k] - whole[k]) <= 0.5 for k in whole)


def test_a_budget_below_the_narrowest_widths_is_refused():
    smallest = smallest_kb(SPECTRAL)
    counts = elements(SPECTRAL)
    assert smallest["weight"] == pytest.approx(sum(n for k, n in counts.items() if k.endswith("weight")) * 2 / 8000)
    with pytest.raises(ValueError, match=rf"weights cannot be reached.*they take {smallest['weight']:.3f} kB"):
        LearnedConvNet(made(SPECTRAL), "width", Budget(smallest["weight"] * 0.99))
    with pytest.raises(ValueError, match=rf"activations cannot.*{smallest['activation']:.3f} kB"):
        LearnedConvNet(made(SPECTRAL), "diffq", Budget(None, smallest["activation"] * 0.99))
    with pytest.raises(ValueError, match="weight_kb must be positive, got 0"):
        Budget(0)
    with pytest.raises(ValueError, match="unknown learner 'magic'; choose one of"):
        LearnedConvNet(made(SPECTRAL), "magic", FREE)


def test_a_collapsed_tensor_is_named_and_not_frozen():
    model = LearnedConvNet(made(SPECTRAL), "width", FREE)
    model.calibrate(heard(SPECTRAL))
    assert model.collapsed(heard(SPECTRAL)) == []
    with torch.no_grad():
        model.quantizer("b_depthwise").range.step_pace.fill_(1.0)
        model.norms["head"].beta.fill_(-50)
    assert model.collapsed() == ["b_depthwise.weight"]
    with pytest.raises(CollapsedWidth, match=r"0 bits: b_depthwise\.weight, head\.output, pool\.output\. Raise"):
        model.freeze(heard(SPECTRAL))


def test_learned_widths_have_no_second_stage_of_their_own():
    model = LearnedConvNet(made(SPECTRAL), "width", FREE)
    with pytest.raises(ValueError, match="frozen first"):
        model.replan(ConvPlan(WeightPlan("lsq", 4)).exact())
