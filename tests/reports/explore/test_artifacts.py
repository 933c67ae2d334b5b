"""What the explorers find under a root, and what they say when there is nothing or something broken."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from kwsbench.quantizers.attach import WeightPlan
from kwsbench.reports.explore.artifacts import DEFAULT_ROOT, Shelf, open_shelf, resolve_root, spec_from_json
from kwsbench.training.experiment import SPECS, System


def test_an_empty_or_missing_root_says_how_to_get_runs(tmp_path):
    for root in (tmp_path, tmp_path / "missing"):
        shelf = open_shelf(root)
        assert shelf.studies == {} and "kwsbench run --profile smoke" in shelf.describe()
    assert not (tmp_path / "missing").exists(), "looking makes nothing"


def test_every_trained_system_is_found_by_the_experiment_it_belongs_to(study, experiment):
    trained = ["float", "stage 2, 5-bit tanh", "stage 1, 5-bit tanh", "stage 1, 2-bit general"]
    assert list(study.systems) == [*trained, "post-training, 8-bit linear"]
    assert study.systems["stage 2, 5-bit tanh"] == System("stage_two", 0, WeightPlan("tanh", 5))
    assert study.experiment.spec == replace(experiment.spec, data=str(study.experiment.spec.data))
    for system in study.systems.values():
        assert study.experiment.folder(system) == experiment.folder(system)


def test_systems_of_several_studies_are_told_apart(study, tmp_path):
    one, two = Shelf(tmp_path, {"a": study}), Shelf(tmp_path, {"a": study, "b": replace(study, label="b")})
    assert list(one.systems) == list(study.systems) and one.systems["float"] == (study, "float")
    assert len(two.systems) == 2 * len(study.systems)
    assert two.systems["float (b)"][1] == "float" and two.systems["float (b)"][0].label == "b"


def test_the_note_of_another_profile_whose_systems_are_not_trained_is_no_study(shelf, experiment):
    notes = sorted((experiment.root / SPECS).glob("*.json"))
    assert len(notes) == 2, "smoke, as it was opened, and tiny"
    assert [s.experiment.spec.profile.name for s in shelf.studies.values()] == ["tiny"]


def test_a_spec_comes_back_from_its_note(experiment, tmp_path):
    for note in (experiment.root / SPECS).glob("*.json"):
        spec = spec_from_json(note, experiment.root)
        assert spec.profile.name in ("smoke", "tiny") and spec.train_mix == experiment.spec.train_mix
        assert isinstance(spec.keywords, tuple) and spec.eval_mix.snr_db == (10.0, 30.0)


def test_a_corpus_under_the_root_moves_with_it(experiment, tmp_path):
    inside = tmp_path / "root" / "corpora" / "mine"
    shutil.copytree(experiment.spec.data, inside)
    e = replace(experiment, root=tmp_path / "root", spec=replace(experiment.spec, data=str(inside)), _models={})
    e.remember()
    (tmp_path / "root").rename(tmp_path / "moved")
    (note,) = (tmp_path / "moved" / SPECS).glob("*.json")
    assert spec_from_json(note, tmp_path / "moved").data == str(tmp_path / "moved" / "corpora" / "mine")


@pytest.mark.parametrize("text", ["{", "[]", '{"data": "x"}'])
def test_a_damaged_note_is_left_out_and_named(tmp_path, text):
    (tmp_path / SPECS).mkdir()
    (tmp_path / SPECS / "broken.json").write_text(text)
    shelf = open_shelf(tmp_path)
    assert not shelf.studies and "broken.json" in shelf.describe()


def test_a_corpus_that_is_gone_is_named(experiment, tmp_path):
    note = next((experiment.root / SPECS).glob("*.json"))
    (tmp_path / SPECS).mkdir()
    values = json.loads(note.read_text()) | {"data": str(tmp_path / "gone")}
    (tmp_path / SPECS / "a.json").write_text(json.dumps(values))
    assert "its corpus" in open_shelf(tmp_path).describe() and "gone" in open_shelf(tmp_path).describe()


def test_kwsbench_lab_names_the_root_unless_the_notebook_does(monkeypatch, tmp_path):
    monkeypatch.setenv("KWSBENCH_ROOT", str(tmp_path))
    assert resolve_root(DEFAULT_ROOT) == tmp_path
    assert str(resolve_root("elsewhere")) == "elsewhere"
    monkeypatch.delenv("KWSBENCH_ROOT")
    assert str(resolve_root(DEFAULT_ROOT)) == DEFAULT_ROOT
