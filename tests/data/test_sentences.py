"""Embedded sentences: what is said stands in the transcripts, voices are disjoint, the same recipe is made once."""

import numpy as np
import pytest

from kwsbench.data.sentences import RECIPES, SentenceRecipe, spoken_sentences
from kwsbench.data.texts import KEYWORD, REQUESTS
from kwsbench.data.transcribed import plain_text, read_utterance


def test_the_grammar_is_closed_and_plain():
    words = {word for text in REQUESTS for word in text.split()}
    assert len(set(REQUESTS)) == len(REQUESTS) > 100 and len(words) < 80
    assert all(text == plain_text(text) for text in REQUESTS)
    assert KEYWORD not in words


def test_sentences_are_spoken_by_disjoint_voices_with_their_words(tmp_path):
    pytest.importorskip("espeakng_loader")
    corpus = spoken_sentences(SentenceRecipe(n_voices=3, per_voice=4), tmp_path, progress=False)
    assert [len(corpus.select(split)) for split in ("train", "validation", "test")] == [4, 4, 4]
    assert {u.text for u in corpus.utterances} <= set(REQUESTS)
    by_split = [{u.speaker for u in corpus.select(split)} for split in ("train", "validation", "test")]
    assert sum(map(len, by_split)) == len(set().union(*by_split)) == 3
    for utterance in corpus.utterances:
        audio = read_utterance(corpus.root, utterance)
        assert len(audio) == pytest.approx(16000 * utterance.seconds, abs=16) and np.abs(audio).max() > 0.01
        # Speech has some 2 to 6 words a second: the recording holds the sentence, and no more.
        assert 0.12 < utterance.seconds / len(utterance.words) < 0.8
    again = spoken_sentences(SentenceRecipe(n_voices=3, per_voice=4), tmp_path, progress=False)
    assert again.fingerprint() == corpus.fingerprint() and again.root == corpus.root
    assert [path.name for path in tmp_path.glob("synth-*")] == [corpus.root.name]


def test_recipes_that_cannot_be_said_are_refused():
    with pytest.raises(ValueError, match=r"per_voice must be 1..\d+, the sentences there are, got 0"):
        SentenceRecipe(per_voice=0)
    with pytest.raises(ValueError, match="got 100000"):
        SentenceRecipe(per_voice=100000)
    assert RECIPES["smoke"].n_voices < RECIPES["default"].n_voices < RECIPES["full"].n_voices
