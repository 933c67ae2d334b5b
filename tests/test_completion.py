"""What <TAB> offers, asked the way the shell asks; and that the answer costs no heavy import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kwsbench import completion
from kwsbench.data.synth import RECIPES
from kwsbench.models.space import front_of
from kwsbench.quantizers import QUANTIZERS
from kwsbench.quantizers.attach import BATCHNORM_FORMS
from kwsbench.reports.status import STATES
from kwsbench.training import clip_experiment, clip_search
from kwsbench.training.experiment import KINDS, PROFILES
from kwsbench.training.recognition import ENCODERS, TASKS

HEAVY = ("torch", "plotly", "numpy", "papermill", "jupyter_client", "matplotlib", "numba")


def offered(line: str, folder: Path, **environment: str) -> list[str]:
    """The words that bash is given for ``line``, whose last word is the one being typed; in ``folder``."""
    code = (
        "import sys\n"
        "sys.argv = ['kwsbench']\n"
        "from kwsbench.cli import app\n"
        "try: app(prog_name='kwsbench')\n"
        "finally:\n"
        f"    print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)\n"
    )
    words = line.split(" ")
    asked = {"_KWSBENCH_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "KWSBENCH_SPEECH"} | asked | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert "HEAVY []" in result.stderr, result.stderr
    return result.stdout.split()


def test_the_fixed_lists_are_those_of_the_tables():
    assert set(completion.PROFILES) == set(PROFILES) == set(RECIPES)
    assert set(completion.METHODS) == set(QUANTIZERS)
    assert set(completion.BATCHNORM) == set(BATCHNORM_FORMS) - {"float"}
    assert completion.KINDS == KINDS
    assert (completion.TASKS, completion.ENCODERS) == (TASKS, ENCODERS)
    assert set(completion.STATES) == set(STATES)
    assert set(completion.CLIP_PROFILES) == set(clip_experiment.PROFILES) == set(clip_search.SEARCHES)
    assert completion.STRATEGIES == clip_search.STRATEGIES
    assert all(front_of(front) for front in completion.FRONTS)


def test_searches_and_tables_are_completed(tmp_path):
    assert offered("kwsbench search --strategies proxyless,r", tmp_path) == ["proxyless,random"]
    assert offered("kwsbench search --front mfcc1", tmp_path) == ["mfcc10"]
    assert offered("kwsbench pareto --profile ti", tmp_path) == ["tiny"]
    assert "twelve" in offered("kwsbench pareto --task tw", tmp_path)


def test_commands_are_offered(tmp_path):
    assert {"doctor", "report", "result", "data"} <= set(offered("kwsbench ", tmp_path))
    assert offered("kwsbench doc", tmp_path) == ["doctor"]


def test_profiles_and_forms_are_offered(tmp_path):
    assert offered("kwsbench result --profile ", tmp_path) == ["smoke", "default", "full"]
    assert offered("kwsbench result --profile d", tmp_path) == ["default"]
    assert offered("kwsbench result --batchnorm ", tmp_path) == ["unfolded", "folded"]


def test_keywords_of_the_corpus_are_offered(tmp_path):
    for word in ("happy", "house", "_background_noise_", ".git"):
        (tmp_path / "corpus" / word).mkdir(parents=True)
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "manifest.csv").write_text("path,label\na.wav,seven\nb.wav,_speech_\nc.wav,six\n")
    assert offered("kwsbench result --data corpus --keyword ", tmp_path) == ["happy", "house"]
    assert offered("kwsbench result --data corpus --keyword ho", tmp_path) == ["house"]
    assert offered("kwsbench data check corpus --keyword ha", tmp_path) == ["happy"]
    assert offered("kwsbench result --data table --keyword s", tmp_path) == ["seven", "six"]
    assert offered("kwsbench result --keyword ha", tmp_path, KWSBENCH_SPEECH="corpus") == ["happy"]
    assert offered("kwsbench result --data nowhere --keyword ", tmp_path) == []


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in ("reports/runs/01_first", "reports/runs/02_second", "sweeps/widths/runs/abc", "reports/runs/no_status"):
        Path(run).mkdir(parents=True)
        if "no_status" not in run:
            Path(run, "status.json").touch()
    for name in ("notebooks/01_a.ipynb", "notebooks/02_b.ipynb", "mine.ipynb", "notebooks/bits.yaml", "own.yml"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()


class Context:
    def __init__(self, **params):
        self.params = params


def test_runs_are_offered_as_paths_and_by_name(folders):
    both = ["reports/runs/01_first", "reports/runs/02_second"]
    assert completion.runs(Context(), "") == ["reports", *both, "sweeps/widths"]
    assert completion.runs(Context(), "reports/runs/02") == both[1:]
    assert completion.runs(Context(), "reports/") == both
    assert completion.runs(Context(), "sweeps/widths/runs/") == ["sweeps/widths/runs/abc"]
    assert completion.runs(Context(), "nowhere/") == []
    assert completion.run_names(Context(folder=Path("reports")), "0") == ["01_first", "02_second"]
    assert completion.run_names(Context(), "") == ["abc"]


def test_notebooks_and_sweeps_are_offered(folders):
    assert completion.notebooks("") == ["mine.ipynb", "notebooks/01_a.ipynb", "notebooks/02_b.ipynb"]
    assert completion.notebooks("notebooks/02") == ["notebooks/02_b.ipynb"]
    assert completion.sweeps("") == ["notebooks/bits.yaml", "own.yml"]
    assert completion.sweeps("no") == ["notebooks/bits.yaml"]
    assert completion.methods("t") == ["tanh"]


def test_commands_offer_what_they_take(folders, tmp_path):
    assert offered("kwsbench run notebooks/", tmp_path) == ["notebooks/01_a.ipynb", "notebooks/02_b.ipynb"]
    assert offered("kwsbench run --profile s", tmp_path) == ["smoke"]
    assert offered("kwsbench report sw", tmp_path) == ["sweeps/widths"]
    assert offered("kwsbench sweep n", tmp_path) == ["notebooks/bits.yaml"]
    assert offered("kwsbench runs compare a", tmp_path) == ["abc"]
    assert offered("kwsbench runs prune sweeps/widths --state f", tmp_path) == ["failed"]
    assert offered("kwsbench train stage_", tmp_path) == ["stage_one", "stage_two"]
    assert offered("kwsbench train float --method ", tmp_path) == list(QUANTIZERS)


@pytest.mark.parametrize("arguments", [["--help"], ["data", "--help"], ["result", "--help"], ["doctor", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    code = (
        "import sys\nfrom kwsbench.cli import app\n"
        f"try: app({arguments!r})\nexcept SystemExit: pass\n"
        f"heavy = set({HEAVY!r}) & set(sys.modules)\nassert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
