import matplotlib.image
import numpy as np
import pytest

from kwsbench.metrics.det import det_curve
from kwsbench.metrics.events import DetectorConfig
from kwsbench.metrics.scores import Scores
from kwsbench.reports.pictures import det_picture, pareto_picture


def curve(shift, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=4000) + np.repeat(np.arange(40) % 2, 100) * shift
    labels = tuple("word" if i % 2 else "other" for i in range(40))
    offsets = np.arange(41) * 100
    paths = tuple(map(str, range(40)))
    scores = Scores(values.astype(np.float32), offsets, labels, paths, np.full(40, np.nan), 0.03, "x")
    return det_curve(scores, "word", DetectorConfig())


def test_the_picture_is_written_whole_and_shows_every_system(tmp_path):
    det_picture({"good": [curve(3, 0), curve(3, 1)], "bad": [curve(0.5, 2)]}, tmp_path / "det.png")
    assert [p.name for p in tmp_path.iterdir()] == ["det.png"]
    image = matplotlib.image.imread(tmp_path / "det.png")[..., :3]
    for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0)):
        near = np.all(np.abs(image * 255 - colour) < 8, axis=-1)
        assert near.sum() > 50


def test_an_unwritable_place_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        det_picture({"good": [curve(3, 0)]}, tmp_path / "file" / "det.png")


def entry(network, quantization, kind, kilobytes, accuracy):
    return {
        "network": network,
        "front": "mfcc",
        "quantization": quantization,
        "kind": kind,
        "flash_bytes": {"mean": 1000 * kilobytes},
        "macs_per_clip": 2_000_000,
        "accuracy": {"mean": accuracy},
        "low": accuracy - 0.05,
        "high": accuracy + 0.05,
    }


def test_the_pareto_picture_shows_every_network_and_kind(tmp_path):
    table = [
        entry("found", "float", "float", 100, 0.8),
        entry("found", "float, equal steps", "control", 100, 0.1),
        entry("found", "8 bits", "stage_two", 30, 0.79),
        entry("found", "8 bits, not trained", "post_training", 30, 0.7),
        entry("found", "trained width, budget 3 bits", "stage_two", 15, 0.75),
        entry("DS-CNN", "float", "float", 90, 0.78),
        entry("DS-CNN", "2 bits", "stage_two", 10, 1.0),
    ]
    pareto_picture(table, tmp_path / "pareto.png")
    assert [p.name for p in tmp_path.iterdir()] == ["pareto.png"]
    image = matplotlib.image.imread(tmp_path / "pareto.png")[..., :3]
    for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0)):
        assert np.all(np.abs(image * 255 - colour) < 40, axis=-1).sum() > 50
