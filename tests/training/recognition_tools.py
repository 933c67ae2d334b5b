"""A corpus of two tones as words, and a profile so small that a system takes seconds: for tests of recognition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from kwsbench.data.audio import SAMPLE_RATE, write_flac
from kwsbench.data.corpora import SPLITS
from kwsbench.features.lfbe import LfbeConfig
from kwsbench.models.conformer import ConformerConfig
from kwsbench.models.recurrent import LstmEncoderConfig
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.quantizers.recognizer import RecognizerPlan
from kwsbench.training.recognition import RecognitionProfile
from kwsbench.training.transducer import TransducerTraining

FOUR = RecognizerPlan(WeightPlan("general", 4))
RUN = TransducerTraining("float", steps=100, learning_rate=1e-2, batch=8, warmup_steps=5, masks=0)
TINY = RecognitionProfile(
    "tiny",
    RUN,
    replace(RUN, name="stage 1", steps=12, learning_rate=2e-3),
    replace(RUN, name="stage 2", steps=6, learning_rate=5e-4),
    lstm=LstmEncoderConfig(n_mels=8, hidden=16, layers=2, stack=3, reduction=2),
    conformer=ConformerConfig(n_mels=8, stack=6, width=16, blocks=1, heads=2, kernel=3, left_context=4),
    sequences=(60, 10, 20),
    word_count=(1, 2),
    features=LfbeConfig(n_mels=8, keep_every=1),
    embedding=8,
    prediction=12,
    joint=16,
)
WORDS = ("high", "low")


def write_tones(root: Path) -> Path:
    """Two words, tones of 3000 and 400 Hz, by two speakers of every split, with a manifest."""
    rows = ["path,label,speaker,split,seconds,sample_rate,start_seconds,end_seconds"]
    for label, hz in (("high", 3000), ("low", 400)):
        (root / label).mkdir(parents=True)
        for split in SPLITS:
            for s in range(2):
                path = f"{label}/{split}{s}.flac"
                seconds = np.arange(SAMPLE_RATE // 4) / SAMPLE_RATE
                write_flac(root / path, (0.2 * np.sin(2 * np.pi * hz * (1 + 0.05 * s) * seconds)).astype(np.float32))
                rows.append(f"{path},{label},{split}{s},{split},0.25,16000,0,0.25")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root
