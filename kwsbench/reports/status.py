"""What is known of one run of a notebook, as one JSON file per run: ``runs/<name>/status.json``.

A run is `running` while it executes; one that is still so when nothing executes was interrupted.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kwsbench.files import write_json

STATES = ("running", "passed", "failed", "timed out", "interrupted")


@dataclass(frozen=True)
class Failure:
    """Why a run did not pass."""

    kind: str  # the exception's class
    message: str
    traceback: str  # plain text, without terminal colours


@dataclass(frozen=True)
class RunStatus:
    """One run: what was asked, how it went, and the key figures that the notebook published."""

    name: str  # folder under runs/, and the page's file name
    notebook: str  # file name of the notebook
    title: str
    state: str  # one of STATES
    profile: str
    parameters: dict[str, Any]  # every declared parameter with the value that was used
    given: tuple[str, ...]  # those that were not left at their default
    started_utc: str
    seconds: float = 0.0
    failure: Failure | None = None
    key_figures: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notebook_sha256: str = ""
    # Of a sweep's run: what its folder is addressed by (code, data, environment, ...), and how often it was begun.
    identity: dict[str, Any] = field(default_factory=dict)
    attempts: int = 1
    deaths: int = 0  # how often its kernel or its job was killed or crashed, the rest of the machine being well

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"a run is one of {STATES}, got {self.state!r}")

    def save(self, path: Path) -> None:
        """Write the file: whole or not at all. Raises OSError; ValueError for a value that JSON has not (NaN)."""
        write_json(path, asdict(self), sort_keys=False)  # key figures keep the order in which they were published

    @classmethod
    def load(cls, path: Path) -> RunStatus:
        """Raises ValueError when the file is no status of a run."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            failure = Failure(**raw.pop("failure")) if raw.get("failure") else None
            raw.pop("failure", None)
            return cls(**{**raw, "given": tuple(raw["given"]), "failure": failure})
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is not the status of a run: {error}") from error
