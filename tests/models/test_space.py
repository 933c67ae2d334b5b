import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from kwsbench.integer.drawn_convolutional import draw_convolutional
from kwsbench.models.convolutional import ConvNet, FloatOperations, last_frame
from kwsbench.models.feedforward import parameter_count
from kwsbench.models.handmade import ds_cnn
from kwsbench.models.layers import Add, Conv, Network, Output, Pool, shapes
from kwsbench.models.space import (
    Cell,
    Description,
    NotationError,
    Space,
    cost,
    front_of,
    layer_macs,
    network_of,
    parse,
    scaled,
    word,
    write,
)
from kwsbench.resources.convolutional import needs, operation_table

TWELVE = tuple(f"label{n}" for n in range(12))
FRONTS = st.sampled_from(["raw", "sinc", *(f"mfcc{n}" for n in (10, 11, 23, 40)), *(f"lfbe{n}" for n in (10, 40, 80))])
CELLS = st.one_of(
    st.none(),
    st.builds(Cell, st.integers(1, 9), st.integers(1, 4)),
    st.builds(Cell, st.integers(2, 9), st.integers(1, 4), st.just(True)),
)
DESCRIPTIONS = st.builds(
    Description, FRONTS, st.integers(1, 12), st.lists(CELLS, min_size=1, max_size=4).map(tuple), st.integers(1, 9)
)


@given(DESCRIPTIONS)
def test_what_is_written_is_read(description):
    text = write(description)
    assert parse(text) == description
    assert parse(f"  {text.replace(' ', '  ')}\n") == description
    assert write(parse(text)) == text


def test_a_notation_builds_what_it_says():
    network = network_of("mfcc10 w16 7e2s 3e1 skip 5e3 h24", ("no", "yes"))
    assert [layer.name for layer in network.layers] == [
        *("stem", "cell1_expand", "cell1_depthwise", "cell1_project"),
        *("cell2_depthwise", "cell2_project", "cell2_add"),
        *("cell4_expand", "cell4_depthwise", "cell4_project", "cell4_add", "head", "pool", "output"),
    ]
    found = shapes(network)
    assert (found["input"], found["stem"]) == ((49, 10, 1), (24, 10, 16))
    assert (found["cell1_expand"], found["cell1_project"]) == ((24, 10, 32), (12, 5, 16))
    assert (found["cell4_depthwise"], found["head"], found["pool"]) == ((12, 5, 48), (12, 5, 24), (12, 1, 24))
    adds = {layer.name: layer.source for layer in network.layers if isinstance(layer, Add)}
    assert adds == {"cell2_add": "cell1_project", "cell4_add": "cell2_add"}
    linear = [layer.name for layer in network.layers if layer.kind == "conv" and not layer.relu]
    assert linear == ["cell1_project", "cell2_project", "cell4_project"]
    assert network.layers[-2].frames == 12
    assert network.notation == "mfcc10 w16 7e2s 3e1 skip 5e3 h24"


@pytest.mark.parametrize("front, filters, taps", [("raw", "free", 64), ("sinc", "sinc", 128)])
def test_raw_audio_comes_down_to_fifty_frames_a_second(front, filters, taps):
    network = network_of(f"{front} w8 7e2s 3e1 h24", ("no", "yes"))
    found = shapes(network)
    assert (found["input"], found["stem"], found["stem2_pointwise"]) == ((16000, 1, 1), (1000, 1, 8), (50, 1, 8))
    assert (network.layers[0].filters, network.layers[0].kernel) == (filters, (taps, 1))
    assert found["cell1_depthwise"] == (25, 1, 16)


@pytest.mark.parametrize(
    "text, position, problem",
    [
        ("", 0, "the notation is empty"),
        ("mfcc9 w8 3e1 h8", 0, "mfcc has 10 to 40 bins, not 9"),
        ("lfbe81 w8 3e1 h8", 0, "lfbe has 10 to 80 bins, not 81"),
        (" cqt40 w8 3e1 h8", 1, "expected a front end (mfcc10 to mfcc40, lfbe10 to lfbe80, raw, sinc), not 'cqt40'"),
        ("raw", 3, "the channels of the cells is missing"),
        ("raw 32 3e1 h8", 4, "expected the channels of the cells, like w64, not '32'"),
        ("raw w0 3e1 h8", 4, "expected the channels of the cells, like w64, not 'w0'"),
        ("raw w8 h8", 7, "there must be a cell"),
        ("raw w8", 6, "there must be a cell"),
        ("raw w8 7x2s h8", 8, "expected a cell (like 7e2, 7e2s or skip) or the head (like h64), not '7x2s'"),
        ("raw w8 7e2t h8", 10, "expected a cell (like 7e2, 7e2s or skip) or the head (like h64), not '7e2t'"),
        ("raw w8 7e h8", 9, "expected a cell (like 7e2, 7e2s or skip) or the head (like h64), not '7e'"),
        ("raw w8 skipp h8", 11, "expected a cell (like 7e2, 7e2s or skip) or the head (like h64), not 'skipp'"),
        ("raw w8 3e1 1e1s h8", 11, "a stride of 2 needs a kernel of 2 or more, not '1e1s'"),
        ("raw w8 3e1", 10, "the channels of the head is missing"),
        ("raw w8 3e1 h", 11, "expected the channels of the head, like h64, not 'h'"),
        ("raw w8 3e1 h8 3e1", 14, "nothing follows the head, but there is '3e1'"),
    ],
)
def test_a_mistake_is_pointed_at(text, position, problem):
    with pytest.raises(NotationError) as raised:
        parse(text)
    message, shown, caret = str(raised.value).split("\n")
    assert message.startswith(problem)
    assert (raised.value.position, shown[4:], caret) == (position, text, " " * (4 + position) + "^")


def test_too_many_strides_are_refused():
    with pytest.raises(ValueError, match=r"^mfcc10 w8 3e1s .*leave no frame of a second of audio"):
        network_of("mfcc10 w8" + 6 * " 3e1s" + " h8", TWELVE)


@given(DESCRIPTIONS)
@settings(max_examples=10, deadline=None)
def test_weights_and_operations_are_those_of_the_built_network(description):
    network = network_of(description, ("no", "yes", "other"))
    counted, model = cost(network), ConvNet(network).eval()
    assert counted.parameters == parameter_count(model)
    weights = sum(conv.weight.numel() for conv in model.convs.values()) + model.output.weight.numel()
    assert counted.weights == weights
    samples = network.front.frames(16000)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(torch.zeros(1, samples, network.front.bins))
    assert 2 * counted.macs_per_clip == flops.get_total_flops()


class Alive(FloatOperations):
    """Counts values: all that were made, and the most that had to be kept at one time."""

    def __init__(self, model, network):
        super().__init__(model)
        self.to_come = [layer.source for layer in network.layers if isinstance(layer, Add)]
        self.names, self.sizes, self.made, self.most = {}, {}, 0, 0

    def _seen(self, name, taken, given):
        self.most = max(self.most, taken + given + sum(self.sizes.get(s, 0) for s in set(self.to_come) - {self.last}))
        self.made += given
        self.sizes[name] = given
        self.last = name

    def conv(self, layer, x):
        y = super().conv(layer, x)
        self._seen(layer.name, self.sizes[self.last], y.numel())
        return y

    def add(self, layer, x, source):
        self.most = max(self.most, 3 * x.numel())
        self.made += x.numel()
        self.to_come.remove(layer.source)
        self.sizes[layer.name], self.last = x.numel(), layer.name
        return x + source


@given(DESCRIPTIONS.filter(lambda d: front_of(d.front).kind != "raw"))
@settings(max_examples=10, deadline=None)
def test_activations_and_the_peak_of_a_clip_are_those_of_the_built_network(description):
    network = network_of(description, ("no", "yes"))
    watching = Alive(ConvNet(network).eval(), network)
    x = torch.zeros(1, 1, *shapes(network)["input"][:2])
    watching.sizes["input"], watching.last = x.numel(), "input"
    last_frame(network, watching, x)
    counted, (frames, bins, head) = cost(network), shapes(network)["head"]
    assert counted.activations == x.numel() + watching.made + head + 2
    assert counted.peak_bytes_whole == max(watching.most, frames * head * bins + head)


@given(DESCRIPTIONS)
@settings(max_examples=10, deadline=None)
def test_costs_are_those_of_an_integer_program_of_eight_bits(description):
    network = network_of(description, ("no", "yes"))
    frames = math.prod(layer.stride[0] for layer in network.layers if isinstance(layer, Conv))
    program = draw_convolutional(network, frames=frames)
    counted, needed = cost(network), needs(program)
    assert layer_macs(network) == {row["operation"]: row["macs_per_clip"] for row in operation_table(program)[:-1]}
    assert (counted.weights, counted.macs_per_clip) == (needed.weights, needed.macs_per_clip)
    assert counted.macs_per_second == pytest.approx(needed.macs_per_second, rel=1e-12)
    assert counted.peak_bytes_streaming == needed.ram_streaming_container_bytes
    assert counted.peak_bytes_whole == needed.ram_whole_container_bytes


def test_operations_of_a_layer_are_of_the_frames_that_the_last_logits_look_at():
    layers = (
        Conv("stem", 1, 8, (3, 4), (2, 2), (1, 1)),  # 49 frames of 10 to 24 of 5
        Conv("deep", 8, 8, (3, 3), (1, 1), (1, 1), depthwise=True),
        Add("sum", "stem"),
        Pool("mean", 20),
        Output("out", 8, 2),
    )
    network = Network(front_of("mfcc10"), ("a", "b"), layers)
    expected = {"stem": 22 * 5 * 8 * 12, "deep": 20 * 5 * 8 * 9, "sum": 0, "mean": 0, "out": 16}
    assert layer_macs(network) == expected and cost(network).macs_per_clip == sum(expected.values())


def test_a_streams_operations_are_those_of_its_frames():
    """Over twenty seconds, that of an average second."""
    network = network_of("mfcc10 w8 5e2s 3e1 h8", ("no", "yes"))
    model = ConvNet(network).eval()
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model.step(torch.zeros(1, 1000, 10), model.fresh(1))
    assert flops.get_total_flops() / 2 / 20 == cost(network).macs_per_second


@pytest.mark.parametrize(
    "notation",
    [
        "mfcc20 w72 7e2s 3e2 5e1" + 9 * " skip" + " h144",
        "sinc w72 skip 5e3 skip skip skip skip skip 7e1 5e1 3e1 skip skip h144",
    ],
)
def test_networks_of_the_published_size_lie_in_the_space(notation):
    """75.7k parameters and 13.6M operations (arXiv 2104.06666), within 1%. Which network that was is not published
    in this notation: these are merely two of its size."""
    counted = cost(network_of(notation, TWELVE))
    assert abs(counted.parameters / 75_700 - 1) < 0.01
    assert abs(counted.macs_per_clip / 13_600_000 - 1) < 0.01


def test_the_papers_supernet():
    space = Space.of_multiplier(TWELVE)
    assert (space.width, space.head, space.size) == (72, 144, 18 * 19**11)
    assert space.candidates[0][:2] == ("3e1s", "3e2s") and "skip" not in space.candidates[0]
    assert space.candidates[1][-2:] == ("7e6", "skip")
    half = Space.of_multiplier(TWELVE, "raw", 0.5)
    assert (half.front, half.width, half.head) == ("raw", 40, 72)


@pytest.mark.parametrize("channels, multiplier, expected", [(72, 1, 72), (72, 0.1, 8), (144, 0.25, 40), (72, 0.15, 16)])
def test_widths_are_rounded_to_eight_and_never_far_down(channels, multiplier, expected):
    assert scaled(channels, multiplier) == expected


@given(st.data())
@settings(deadline=None)
def test_a_path_is_found_again_from_its_notation(data):
    space = Space(("a", "b"), "raw", 8, 8, 3, (0, 2), (3, 5), (1, 2))
    path = tuple(data.draw(st.integers(0, len(cells) - 1)) for cells in space.candidates)
    assert space.path(space.network(path).notation) == path
    assert [word(c) for c in space.description(path).cells] == [c[p] for c, p in zip(space.candidates, path)]


def test_candidates_of_a_cell_give_one_shape_and_costs_add_up():
    """What a search relies on: cells may be chosen one by one."""
    space = Space(("a", "b"), "mfcc13", 8, 8, 3, (1,), (3, 5), (1, 3))
    base = (0, 0, 0)
    whole = cost(space.network(base)).macs_per_clip
    path = (4, 3, 2)
    apart = sum(cost(space.network((*base[:i], p, *base[i + 1 :]))).macs_per_clip - whole for i, p in enumerate(path))
    assert cost(space.network(path)).macs_per_clip == whole + apart
    assert {shapes(space.network((p, 0, 0)))["head"] for p in range(5)} == {(12, 7, 8)}
    assert math.prod(len(cells) for cells in space.candidates) == space.size == 5 * 4 * 5


def test_what_lies_outside_a_space_is_named():
    space = Space(("a", "b"), "raw", 8, 8, 2, (0,), (3,), (1, 2))
    with pytest.raises(ValueError, match=r"cell 2 is one of 3e1 3e2 skip, not 5e1"):
        space.path("raw w8 3e1s 5e1 h8")
    with pytest.raises(ValueError, match=r"the space has raw w8, 2 cells and h8, not 'raw w9"):
        space.path("raw w9 3e1s 3e1 h8")
    with pytest.raises(ValueError, match=r"a path gives each cell a candidate below \[2, 3\], got \[0, 3\]"):
        space.network((0, 3))
    with pytest.raises(ValueError, match=r"strided names cells 0 to 1, got \(2,\)"):
        Space(("a", "b"), "raw", 8, 8, 2, (2,))
    with pytest.raises(ValueError, match="must be distinct"):
        Space(("a", "a"))


def test_peaks_in_values_count_samples_and_sums_once():
    """Bytes of an 8-bit program have two for each of them; a float one has four for every value."""
    raw = cost(network_of("raw w28 7e2s 7e2 5e2 5e1 h64", ("no", "yes")))
    assert raw.peak_bytes_whole - raw.peak_values_whole == 16_000  # all samples, at the first layer
    network = ds_cnn(("no", "yes"))
    (pool,) = (layer for layer in network.layers if isinstance(layer, Pool))
    channels = shapes(network)[pool.name][2]
    counted = cost(network)
    assert counted.peak_bytes_streaming - counted.peak_values_streaming == (pool.frames - 1) * channels
    assert counted.peak_bytes_whole == counted.peak_values_whole
