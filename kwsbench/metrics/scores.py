"""Frame scores of one keyword over the segments of an evaluation set, and how logits become scores.

Conventions: one float32 score per model frame (30 ms by default), larger means more like the keyword. A
segment is one clip or one stretch of continuous speech; segments lie one after the other in ``values`` and
``offsets`` says where each begins. A segment's label is the word of its clip; ``"_speech_"`` marks
continuous speech without the keyword, ``"_noise_"`` background noise.

Saved as npz without pickles: scores may be computed once and read by any notebook.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kwsbench.files import replacing

CONTINUOUS_SPEECH = "_speech_"  # the reserved label of data.corpora.SPEECH


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores ``values`` float32 [total] of S segments; segment i is ``values[offsets[i]:offsets[i+1]]``.

    ``word_end_seconds`` [S] is the end of the word within the segment, NaN where it is unknown or there is
    none. A segment may be empty: it then never fires.

    Raises:
        ValueError: a score is NaN or infinite, or the fields do not fit together.
    """

    values: np.ndarray
    offsets: np.ndarray  # int64 [S+1], from 0 to total
    labels: tuple[str, ...]
    paths: tuple[str, ...]
    word_end_seconds: np.ndarray  # float32 [S]
    frame_seconds: float
    system: str  # what made the scores, for example "float" or "2-bit stage 2"

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", np.ascontiguousarray(self.values, np.float32))
        object.__setattr__(self, "offsets", np.ascontiguousarray(self.offsets, np.int64))
        object.__setattr__(self, "word_end_seconds", np.asarray(self.word_end_seconds, np.float32))
        segments = len(self.labels)
        if self.values.ndim != 1:
            raise ValueError(f"scores of one keyword are one-dimensional, got shape {self.values.shape}")
        bad = np.flatnonzero(~np.isfinite(self.values))
        if len(bad):
            raise ValueError(
                f"{len(bad)} of {len(self.values)} scores of {self.system!r} are NaN or infinite, "
                f"the first at frame {bad[0]}: check the logits that made them"
            )
        if self.offsets.shape != (segments + 1,):
            raise ValueError(f"{segments} segments need {segments + 1} offsets, got {self.offsets.shape}")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.values) or np.any(np.diff(self.offsets) < 0):
            raise ValueError(f"offsets must rise from 0 to the {len(self.values)} frames of the scores")
        if len(self.paths) != segments or self.word_end_seconds.shape != (segments,):
            raise ValueError(
                f"{segments} labels, but {len(self.paths)} paths and {len(self.word_end_seconds)} word ends"
            )
        if not self.frame_seconds > 0:
            raise ValueError(f"frame_seconds must be positive, got {self.frame_seconds}")

    def __len__(self) -> int:
        return len(self.labels)

    def segment(self, i: int) -> np.ndarray:
        """Scores of segment ``i`` (a view)."""
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def save(self, path: str | Path) -> None:
        """Write an npz to a temporary name, then rename."""
        write_npz(
            path,
            values=self.values,
            offsets=self.offsets,
            labels=np.array(self.labels, np.str_),
            paths=np.array(self.paths, np.str_),
            word_end_seconds=self.word_end_seconds,
            frame_seconds=np.float64(self.frame_seconds),
            system=np.str_(self.system),
        )

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what :meth:`save` wrote. Raises FileNotFoundError, or ValueError for any other file."""
        names = (
            "values", "offsets", "labels", "paths", "word_end_seconds", "frame_seconds", "system"
        )  # fmt: skip
        arrays = read_npz(path, names)
        return cls(
            values=arrays["values"],
            offsets=arrays["offsets"],
            labels=tuple(arrays["labels"].tolist()),
            paths=tuple(arrays["paths"].tolist()),
            word_end_seconds=arrays["word_end_seconds"],
            frame_seconds=float(arrays["frame_seconds"]),
            system=str(arrays["system"]),
        )


def keyword_scores(logits: np.ndarray) -> np.ndarray:
    """Log odds of each keyword against everything else, from logits ``[..., K+1]``.

    Output 0 of the network is "none of them", output k is keyword k. The score of keyword k is
    ``logit_k - logsumexp(all other logits)``: the logit of its softmax posterior, so 0 means 50%. Computed
    in float64 whatever comes in, returned as float32 ``[..., K]``. With one keyword it is ``l1 - l0``.

    Raises:
        ValueError: fewer than two outputs.

    >>> keyword_scores(np.array([[0.0, 2.0], [1.0, -1.0]])).tolist()
    [[2.0], [-2.0]]
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim == 0 or logits.shape[-1] < 2:
        raise ValueError(f"logits need at least two outputs (none, keyword), got shape {logits.shape}")
    scores = np.empty((*logits.shape[:-1], logits.shape[-1] - 1), np.float32)
    for k in range(1, logits.shape[-1]):
        others = np.delete(logits, k, axis=-1)
        peak = others.max(axis=-1, keepdims=True)
        total = np.log(np.exp(others - peak).sum(axis=-1)) + peak[..., 0]
        scores[..., k - 1] = logits[..., k] - total
    return scores


def write_npz(path: str | Path, **arrays: Any) -> None:
    """Write arrays to ``path`` as npz: a temporary name beside it, then a rename."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def read_npz(path: str | Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays ``names`` of an npz.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, not an npz, or lacks one of the names.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        # Opened here: np.load leaves a file open when the zip is bad.
        with path.open("rb") as file, np.load(file) as archive:
            return {name: archive[name] for name in names}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is truncated or not an npz file ({error}); write it again") from error
    except KeyError as error:
        raise ValueError(f"{path} holds something else: {error}") from error
