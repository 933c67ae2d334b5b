"""A quantizer from outside the package: registered from one file, used by name, refused when it does not fit."""

from __future__ import annotations

import importlib
import sys
import types

import numpy as np
import pytest
import torch

from kwsbench.arithmetic.codebook import midpoint_codebook
from kwsbench.integer import run
from kwsbench.integer.lower import lower
from kwsbench.models.feedforward import Spotter, SpotterConfig
from kwsbench.quantizers import CODEBOOKS, QUANTIZERS, SOURCES, WeightQuantizer, register
from kwsbench.quantizers.attach import QuantizedSpotter, WeightPlan, stage_two_plan
from kwsbench.quantizers.usage import response
from kwsbench.training.experiment import PROFILES, Experiment, ExperimentSpec, System

SMALL = SpotterConfig(("yes",), n_mels=8, stacked_frames=5, hidden=(24, 16))
# Weights at three levels: -1, 0 and 1 times the largest one, split at a third.
SOURCE = """
import numpy as np
import torch
from torch import nn
from kwsbench.arithmetic.codebook import Codebook
from kwsbench.quantizers import WeightQuantizer, register
from kwsbench.quantizers.gradients import straight_through

def thirds(bits):
    return Codebook(np.array([-1.0, 0, 1]), np.array([-1 / 3, 1 / 3]), np.array(CODES, np.int16), STEP)

class Thirds(WeightQuantizer):
    method = "thirds"
    def __init__(self, weight, bits, per_channel=False):
        super().__init__()
        self.bits, self.per_channel, self.grid = bits, per_channel, "symmetric"
        self.codebook = thirds(bits)
        self.weight = nn.Parameter(weight.detach().clone())
        peak = weight.detach().abs().amax(dim=1) if per_channel else weight.detach().abs().amax().reshape(1)
        self.log_scale = nn.Parameter(torch.log(peak))
    def step(self):
        return torch.exp(self.log_scale) * self.codebook.step
    def codes(self):
        x = self.weight / torch.exp(self.log_scale)[:, None]
        return straight_through(x / self.codebook.step, self.codebook.encode_codes(x))
    def latent(self):
        return self.weight

register(Thirds, thirds)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes and imports the file; afterwards the tables are what they were."""
    for table in (QUANTIZERS, CODEBOOKS, SOURCES):
        assert "thirds" not in table
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def make(codes="[-1, 0, 1]", step="1.0", extra=""):
        source = SOURCE.replace("CODES", codes).replace("STEP", step) + extra
        (tmp_path / "own_thirds.py").write_text(source)
        sys.modules.pop("own_thirds", None)
        importlib.invalidate_caches()
        return importlib.import_module("own_thirds")

    yield make
    sys.modules.pop("own_thirds", None)
    for table in (QUANTIZERS, CODEBOOKS, SOURCES):
        table.pop("thirds", None)


def quantized(bits=2, per_channel=False, form="unfolded"):
    model = QuantizedSpotter(Spotter(SMALL, 3), stage_two_plan(WeightPlan("thirds", bits, per_channel), form)).eval()
    model.calibrate(torch.randn(64, 5, 8, generator=torch.Generator().manual_seed(0)))
    return model


@pytest.mark.parametrize("form", ["unfolded", "folded"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_an_own_quantizer_trains_forward_and_lowers_to_equal_integers(own, per_channel, form):
    own()
    model = quantized(2, per_channel, form)
    x = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    program = lower(model)
    with torch.no_grad():
        emulated, _ = model.step(torch.from_numpy(x)[None], model.fresh(1))
    for backend in ("reference", "neon", "neon_sdot"):
        assert np.array_equal(run.run(program, x, backend).astype(np.float32), emulated[0].numpy()), backend
    weight = model.quantizer(0).weight.detach().numpy()
    peak = np.abs(weight).max(axis=1, keepdims=True) if per_channel else np.abs(weight).max()
    magnitude = np.abs(np.asarray(weight) / peak)
    expected = np.where(magnitude < 1 / 3, 0, np.sign(weight))
    clear = np.abs(magnitude - 1 / 3) > 1e-6
    assert np.array_equal(np.abs(program.layers[0].codes)[clear], np.abs(expected)[clear])


def test_it_is_seen_where_the_built_in_ones_are(own):
    own()
    seen = response("thirds", 2, np.array([-1.0, -0.4, -0.2, 0.2, 0.4, 1.0]))
    assert seen.output.tolist() == [-1, -1, 0, 0, 1, 1]
    assert CODEBOOKS["thirds"](2).levels.tolist() == [-1, 0, 1]


def test_an_edited_file_is_another_identity_and_the_package_has_none(own, tmp_path):
    class Bank:
        source_hash = "0" * 64

    experiment = Experiment(ExperimentSpec("nowhere", ("yes",), PROFILES["smoke"]), tmp_path, device="cpu")
    experiment.bank = lambda split: Bank()
    own()
    system = System("stage_one", 0, WeightPlan("thirds", 2))
    first = experiment.folder(system)
    own()
    assert experiment.folder(system) == first
    own(extra="\n# another line\n")
    assert experiment.folder(system) != first
    plain = experiment.identity(System("stage_one", 0, WeightPlan("tanh", 2)))["own"]["weights"]
    assert plain == {"method": "tanh", "bits": 2, "per_channel": False}


@pytest.mark.parametrize(
    "codes, step, message",
    [
        ("[-2, 0, 2]", "0.5", r"thirds: code -2 does not lie on its grid 'symmetric', .* at 2 bits the codes -1, 0"),
        ("[-128, 0, 127]", "1.0", "code -128 does not lie"),
    ],
)
def test_codes_off_the_grid_are_refused_before_training(own, codes, step, message):
    own(codes, step)
    with pytest.raises(ValueError, match=message):
        quantized(2)


def test_a_codebook_without_codes_is_refused(own, monkeypatch):
    module = own()
    monkeypatch.setattr(module, "thirds", lambda bits: midpoint_codebook(np.array([-1.0, 0, 1])))
    with pytest.raises(ValueError, match=r"no integer codes; make it with integer_codebook"):
        quantized(2)


def test_what_cannot_be_registered_says_why(own):
    module = own()
    with pytest.raises(TypeError, match="subclass of WeightQuantizer, got 3"):
        register(3, module.thirds)  # type: ignore[arg-type]

    class Half(WeightQuantizer):
        method = "half"

    with pytest.raises(TypeError, match="Half leaves out codes, latent, step"):
        register(Half, module.thirds)

    class Nameless(module.Thirds):
        method = ""

    with pytest.raises(ValueError, match=r"Nameless needs a name .*method = "):
        register(Nameless, module.thirds)

    class Usurper(module.Thirds):
        method = "tanh"

    with pytest.raises(ValueError, match=r"'tanh' is taken by kwsbench.quantizers.tanh.TanhWeight"):
        register(Usurper, module.thirds)
    assert QUANTIZERS["tanh"].__name__ == "TanhWeight"


def test_a_class_of_a_notebook_cell_is_refused(own, monkeypatch):
    module = own()
    monkeypatch.setitem(sys.modules, "cell", types.ModuleType("cell"))
    typed = type("Typed", (module.Thirds,), {"method": "typed", "__module__": "cell"})
    with pytest.raises(ValueError, match=r"Typed stands in no file; put it in a \.py file"):
        register(typed, module.thirds)
    assert "typed" not in QUANTIZERS


def test_an_unknown_method_says_how_a_file_is_found():
    with pytest.raises(ValueError, match=r"unknown quantizer 'thirds'; .* or import the file that registers it"):
        WeightPlan("thirds", 2)
