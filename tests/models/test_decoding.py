"""Searches of a transducer: chunked = whole, width 1 = greedy, no pruning = every alignment counted out."""

import itertools

import numpy as np
import pytest
import torch

from kwsbench.models.conformer import ConformerConfig
from kwsbench.models.decoding import (
    Beam,
    beam_search,
    beam_start,
    greedy_search,
    greedy_start,
    listen,
    listen_start,
    recognise,
)
from kwsbench.models.transducer import LstmEncoderConfig, Transducer, TransducerConfig

LSTM = LstmEncoderConfig(n_mels=4, stack=2, hidden=8, layers=2, reduction=2)
CONFORMER = ConformerConfig(n_mels=4, stack=2, width=8, blocks=1, heads=2, kernel=3, left_context=4)


def transducer(symbols=5, encoder=LSTM, per_frame=3, seed=0, scale=4.0):
    """Random weights, made large so that the symbols differ and labels are emitted."""
    model = Transducer(TransducerConfig(symbols, encoder, 4, 6, 6, per_frame), seed).eval()
    with torch.no_grad():
        for layer in (model.joiner.encoder, model.joiner.prediction, model.joiner.output):
            layer.weight.mul_(scale)
    return model


def encoded(model, count, seed=1):
    return 0.7 * torch.randn(count, model.encoder.width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("encoder", [LSTM, CONFORMER], ids=["lstm", "conformer"])
@pytest.mark.parametrize("width", [1, 3])
def test_chunked_is_whole_from_log_mel_frames_to_labels(encoder, width):
    model = transducer(encoder=encoder)
    frames = torch.randn(83, 4, generator=torch.Generator().manual_seed(5))
    whole = listen(model, frames, listen_start(model, width), width).search
    assert len(whole.labels) > 3
    for chunk in (1, 2, 5, 17):
        state = listen_start(model, width)
        for at in range(0, 83, chunk):
            state = listen(model, frames[at : at + chunk], state, width)
        found = state.search
        assert found.labels == whole.labels and found.frames == whole.frames == 83 // model.encoder.frames_joined
        if isinstance(found, Beam):
            assert [(h.labels, h.score) for h in found.hypotheses] == [(h.labels, h.score) for h in whole.hypotheses]
        else:
            assert found.emitted_at == whole.emitted_at
    assert recognise(model, frames, width) == whole.labels


@pytest.mark.parametrize("seed", range(12))
def test_width_one_is_greedy(seed):
    model = transducer(seed=seed)
    x = encoded(model, 15, seed)
    greedy = greedy_search(model, x, greedy_start(model))
    beam = beam_search(model, x, beam_start(model), 1)
    assert beam.labels == greedy.labels and len(beam.hypotheses) == 1


def test_the_greedy_cases_hold_labels_and_forced_blanks():
    """So that the test above says something: labels came, and some frames were full."""
    results = [greedy_search(m, encoded(m, 15, s), greedy_start(m)) for s in range(12) for m in [transducer(seed=s)]]
    assert sum(len(r.labels) > 0 for r in results) >= 6
    assert any(max(np.bincount(r.emitted_at), default=0) == 3 for r in results if r.labels)
    for r in results:
        assert list(r.emitted_at) == sorted(r.emitted_at) and r.frames == 15


def exhaustive(model, x, per_frame, longest):
    """{labels: log-probability over all ways to deal them to frames, at most `per_frame` each}."""
    scores = {}
    with torch.no_grad():
        for count in range(longest + 1):
            for labels in itertools.product(range(1, model.config.symbols), repeat=count):
                predicted = model.prediction(torch.tensor([labels], dtype=torch.long).reshape(1, count))
                logs = model.joiner(x[None], predicted).double().log_softmax(-1)[0].numpy()
                paths = []
                for dealt in itertools.product(range(per_frame + 1), repeat=len(x)):
                    if sum(dealt) == count:
                        total, u = 0.0, 0
                        for t, n in enumerate(dealt):
                            total += sum(logs[t, u + i, labels[u + i]] for i in range(n))
                            u += n
                            total += logs[t, u, 0]
                        paths.append(total)
                if paths:
                    scores[labels] = float(np.logaddexp.reduce(paths))
    return scores


@pytest.mark.parametrize("seed", range(3))
def test_without_pruning_scores_are_those_of_all_alignments(seed):
    model = transducer(symbols=3, per_frame=2, seed=seed, scale=2.0)
    x = encoded(model, 3, seed)
    expected = exhaustive(model, x, per_frame=2, longest=6)
    found = {h.labels: h.score for h in beam_search(model, x, beam_start(model), 10_000).hypotheses}
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[k] for k in expected], list(expected.values()), atol=1e-6)
    best = max(expected, key=expected.__getitem__)
    assert beam_search(model, x, beam_start(model), 10_000).labels == best
    # Pruned scores leave alignments out; they never add any.
    for h in beam_search(model, x, beam_start(model), 4).hypotheses:
        assert h.score <= expected[h.labels] + 1e-6


def test_a_wider_beam_finds_what_greedy_misses():
    """Two alignments of one label sequence can outweigh the single best one."""
    better = 0
    for seed in range(30):
        model = transducer(symbols=3, per_frame=2, seed=seed, scale=2.0)
        x = encoded(model, 3, seed)
        expected = exhaustive(model, x, per_frame=2, longest=6)
        greedy = greedy_search(model, x, greedy_start(model)).labels
        wide = beam_search(model, x, beam_start(model), 100).labels
        assert expected[wide] == max(expected.values())
        better += expected[wide] > expected[greedy]
    assert better >= 3


def test_hypotheses_are_ordered_distinct_and_no_more_than_the_width():
    model = transducer()
    state = beam_search(model, encoded(model, 10), beam_start(model), 5)
    scores = [h.score for h in state.hypotheses]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)
    assert len({h.labels for h in state.hypotheses}) == 5


def test_no_frames_change_nothing():
    model = transducer()
    x = encoded(model, 0)
    assert greedy_search(model, x, greedy_start(model)).labels == ()
    assert beam_search(model, x, beam_start(model), 3).labels == ()
    assert recognise(model, torch.zeros(1, 4)) == ()


def test_bad_input_is_named():
    model = transducer()
    with pytest.raises(ValueError, match="width of at least 1, got 0"):
        beam_search(model, encoded(model, 2), beam_start(model), 0)
    with torch.no_grad():
        model.joiner.output.bias[1] = torch.nan
    with pytest.raises(FloatingPointError, match="encoder frame 0 are not finite"):
        greedy_search(model, encoded(model, 2), greedy_start(model))
    with pytest.raises(FloatingPointError, match="encoder frame 0 are not finite"):
        beam_search(model, encoded(model, 2), beam_start(model), 2)


def test_a_beam_does_not_go_on_from_a_greedy_state():
    model, frames = transducer(), torch.zeros(8, LSTM.n_mels)
    with pytest.raises(ValueError, match=r"start with listen_start\(model, 4\)"):
        listen(model, frames, listen_start(model), 4)
