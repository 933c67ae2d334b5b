"""The notebooks of the project: declared parameters, stripped outputs, and the first one executed."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from kwsbench.reports.notebooks import notebook_title, plan_run, read_notebook, run_notebook
from kwsbench.reports.parameters import declared_parameters
from kwsbench.reports.show import PLOTLY_MIME

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS and NOTEBOOKS[0].name == "01_quantizers.ipynb"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_titled_stripped_and_say_what_each_parameter_means(path):
    notebook = read_notebook(path)
    nbformat.validate(notebook)
    assert notebook_title(notebook, "") != ""
    declared = {p.name: p for p in declared_parameters(notebook, path.name)}
    assert "profile" in declared, "`make report` fills it in"
    assert all(p.comment for p in declared.values())
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_the_first_notebook_measures_what_theory_says(tmp_path):
    """Best clip of a Gaussian on the odd grid: 19.4 dB at 4 bits, 24.6 dB at 5 bits."""
    status = run_notebook(plan_run(NOTEBOOKS[0], {"bits": [5, 4], "profile": "smoke"}), tmp_path, 120)
    assert status.state == "passed", status.failure
    assert status.key_figures["sqnr_db_tanh_at_4_bits"] == pytest.approx(19.4, abs=0.15)
    assert status.key_figures["sqnr_db_tanh_at_5_bits"] == pytest.approx(24.6, abs=0.15)
    executed = nbformat.read(tmp_path / "runs" / "01_quantizers" / "notebook.ipynb", as_version=4)
    outputs = [o for c in executed.cells for o in c.get("outputs", []) if "data" in o]
    assert sum(PLOTLY_MIME in o.data for o in outputs) == 5
