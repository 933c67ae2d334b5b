"""What a specification says, what follows from it, and what is refused before anything runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import papermill
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sweep_tools import write_notebook, write_spec

from kwsbench.data.audio import write_wav
from kwsbench.data.clips import clip_task, synthetic_recipe
from kwsbench.data.synth import content_address
from kwsbench.reports.notebooks import read_notebook
from kwsbench.reports.parameters import Text, declared_parameters, typed_value
from kwsbench.sweeps.spec import Overrides, read_sweep
from kwsbench.sweeps.written import read_yaml

A = 'profile: str = "none"\nword: str = "yes"\nbits: list[int] = [8]\nrate: float = 1.0\nseed: int = 0\nroot: str = "."'
B = "seed: int = 0\nfast: bool = False"
REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    write_notebook(tmp_path / "a.ipynb", A, "print(word)")
    write_notebook(tmp_path / "b.ipynb", B, "print(seed)")
    return tmp_path


def spec(folder: Path, text: str, **more) -> Path:
    path = folder / "s.yaml"
    path.write_text(text)
    return path


def plan(folder: Path, text: str, **overrides):
    return read_sweep(spec(folder, text), Overrides(folder / "out", folder / "root", **overrides))


def problems(folder: Path, text: str) -> str:
    with pytest.raises(ValueError) as caught:
        plan(folder, text)
    assert not (folder / "out" / "runs").exists(), "nothing was run"
    return str(caught.value)


def test_grid_list_and_seeds_over_notebooks_and_each_run_once(folder):
    sweep = plan(
        folder,
        "notebooks: [a.ipynb, b.ipynb]\nprofile: smoke\nparameters: {rate: 2}\n"
        "grid: {word: [x, y], bits: [[8], [5, 4]]}\nlist: [{word: z}]\nseeds: [0, 1]\n",
    )
    a = [r.parameters for r in sweep.runs if r.notebook.name == "a.ipynb"]
    b = [r.parameters for r in sweep.runs if r.notebook.name == "b.ipynb"]
    assert len(a) == (2 * 2 + 1) * 2 and len(b) == 2, "b declares neither word nor bits: one run for each seed"
    assert {(p["word"], tuple(p["bits"]), p["seed"]) for p in a} == {
        (w, b, s) for w, b in [("x", (8,)), ("x", (5, 4)), ("y", (8,)), ("y", (5, 4)), ("z", (8,))] for s in (0, 1)
    }
    assert (
        {p["rate"] for p in a} == {2} and {p["profile"] for p in a} == {"smoke"} and {p["root"] for p in a} == {"root"}
    )
    assert all(p["fast"] is False and "rate" not in p for p in b)
    assert len({r.name for r in sweep.runs}) == 12
    assert all(r.name == f"{r.notebook.stem}-{r.identity['address'][:12]}" for r in sweep.runs)


def test_runs_that_share_a_float_model_do_not_start_together(folder):
    sweep = plan(folder, "notebooks: [a.ipynb]\ngrid: {word: [x, y, z]}\nseeds: [0, 1, 2]\n")
    seeds = [r.parameters["seed"] for r in sweep.runs]
    assert seeds == [0, 1, 2] * 3


@pytest.mark.parametrize(
    "text", ["007", "no", "1e3", "12:30", "true", "null", "0x10", "1_000", "2001-01-01", "~", ".inf"]
)
def test_a_text_stays_the_text_that_was_written(folder, text):
    (run,) = plan(folder, f"notebooks: [a.ipynb]\nparameters: {{word: {text}}}\n").runs
    assert run.parameters["word"] == text


def test_the_declared_type_decides_for_each_notebook_on_its_own(folder):
    write_notebook(folder / "c.ipynb", "word: int = 0", "pass")
    sweep = plan(folder, "notebooks: [a.ipynb, c.ipynb]\nparameters: {word: 12}\n")
    assert [r.parameters["word"] for r in sweep.runs] == ["12", 12]


@pytest.mark.parametrize(
    "line, says",
    [
        ("seeds: [010]", "seeds must be int, and 010 is ambiguous (octal for YAML); write it without leading zeros"),
        ("grid: {rate: [010]}", "grid.rate must be float, and 010 is ambiguous"),
        ("grid: {bits: [8, 5]}", "grid.bits must be list[int], got '8'; write it in brackets: [8]"),
        ("grid: {bits: 8}", "grid.bits must be a list of values that is not empty, got '8'"),
        ("grid: {bits: []}", "grid.bits must be a list of values that is not empty"),
        ("parameters: {rate: fast}", "parameters.rate must be float, got 'fast'"),
        ("parameters: {rate: .nan}", "parameters.rate must be float, got '.nan'"),
        ("parameters: {rate: 1e999}", "parameters.rate must be float, and 1e999 is too large"),
        ('parameters: {rate: "2"}', "parameters.rate must be float, got the text '2'; take the quotes away"),
        ("parameters: {word: }", "parameters.word must be str, and has no value; write '' for no text"),
        ("parameters: {wrod: x}", "no notebook declares 'wrod'; did you mean 'word'?"),
        ("list: [{sed: 1}]", "list[1].sed: no notebook declares 'sed'; did you mean 'seed'?"),
        ("list: {word: x}", "list must be a list of mappings"),
        ("parameters: [word]", "parameters must be a mapping of parameters to values"),
        ("grids: {word: [x]}", "no key 'grids'; did you mean 'grid'?"),
        ("parameters: {profile: smoke}", "parameters.profile: give it as the key 'profile' of the specification"),
        ("parameters: {word: x}\ngrid: {word: [y]}", "grid.word: it is in `parameters` too"),
        ("grid: {seed: [1]}\nseeds: [0]", "grid.seed: the seed is given by `seeds` too"),
        ("seeds: []", "seeds must name a seed"),
        ("seeds: [-1]", "seed must be 0 or greater, got -1"),
        ("grid: {bits: [[9]]}", "bits: "),
        ("profile: quick", "profile must be one of 'smoke', 'default', 'full'; got 'quick'"),
        ("jobs: 0", "jobs must be greater than 0, got 0"),
        ("jobs: two", "jobs must be int, got 'two'"),
        ("timeout_minutes: -1", "timeout_minutes must be greater than 0, got -1"),
        ("name: ../x", "name must be letters, digits"),
        ("data: corpus", "data: no notebook declares the parameter 'data'"),
        ("grid: {word: [x]}\ngrid: {word: [y]}", "line 3: the key 'grid' is given twice"),
        ("parameters: {word: x, word: y}", "the key 'word' is given twice"),
        ("parameters: {word: !!python/name:os.system x}", "tags are not supported"),
        ("parameters: &p {word: x}\nlist: [*p]", "anchors and aliases"),
        ("parameters: {<<: {word: x}}", "merges (<<) are not supported"),
        ("? [a]\n: b", "a key must be a plain text"),
        ("grid: {word: [x", "is not YAML"),
        ("parameters: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("notes: \t", "is not YAML"),
        ('parameters: {word: "\\uD800"}', "parameters.word must be str, and half a surrogate pair is no text"),
    ],
)
def test_what_is_refused_and_how_it_is_said(folder, line, says):
    assert says in problems(folder, f"notebooks: [a.ipynb]\n{line}\n")


def test_all_problems_are_said_at_once(folder):
    said = problems(folder, "notebooks: [a.ipynb, gone.ipynb]\njobs: 0\ngrid: {rate: [x]}\nsedes: [1]\n")
    for part in ("no notebook", "jobs must be greater", "grid.rate must be float", "did you mean 'seeds'"):
        assert part in said
    assert "4 to mend" in said


@pytest.mark.parametrize("text", ["", "[]", "x", "profile: smoke", "notebooks: []"])
def test_a_specification_needs_notebooks(folder, text):
    said = problems(folder, text)
    assert "no notebooks; write for example" in said or "a specification is a mapping" in said


def test_too_many_runs(folder):
    values = "[" + ",".join(map(str, range(200))) + "]"
    assert "40000 runs are more than 10000" in problems(
        folder, f"notebooks: [a.ipynb]\ngrid: {{rate: {values}, word: {values}}}"
    )


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no specification"):
        read_sweep(tmp_path / "s.yaml")
    (tmp_path / "s.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_sweep(tmp_path / "s.yaml")


def test_paths_in_the_file_are_relative_to_it_and_the_command_line_overrides(folder, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    path = spec(folder, "notebooks: [a.ipynb]\nroot: r\nout: o\njobs: 3\ntimeout_minutes: 2")
    sweep = read_sweep(path, dry=True)
    assert (sweep.root, sweep.out, sweep.jobs, sweep.timeout_seconds) == (folder / "r", folder / "o", 3, 120)
    assert not (folder / "o").exists(), "a dry run makes no folder"
    sweep = read_sweep(spec(folder, "notebooks: [a.ipynb]\nname: n"), Overrides(jobs=1, timeout_minutes=0.5))
    assert (sweep.root, sweep.out) == (elsewhere / "runs", elsewhere / "sweeps" / "n")
    assert (sweep.jobs, sweep.timeout_seconds) == (1, 30)


def test_folders_that_cannot_be_written(folder):
    (folder / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"cannot write to .*file/out.*choose another"):
        read_sweep(spec(folder, "notebooks: [a.ipynb]"), Overrides(folder / "file" / "out", folder / "root"))


# ------------------------------------------------------------------ data


@pytest.fixture
def corpus(tmp_path):
    import numpy as np

    root, rng = tmp_path / "corpus", np.random.default_rng(0)
    rows = ["path,label,speaker,split"]
    for split in ("train", "validation", "test"):
        (root / split).mkdir(parents=True)
        write_wav(root / split / "x.wav", rng.normal(0, 0.1, 16000))
        rows.append(f"{split}/x.wav,happy,{split},{split}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


def test_the_corpus_and_its_keyword_are_checked_before_anything_runs(tmp_path, corpus):
    write_notebook(tmp_path / "d.ipynb", 'data: str = ""\nkeyword: str = "computer"', "pass")
    text = "notebooks: [d.ipynb]\nprofile: smoke\n"
    assert "'computer'" in problems(tmp_path, text + "data: corpus")
    assert "no corpus at" in problems(tmp_path, text + "data: gone\nparameters: {keyword: happy}")
    (run,) = plan(tmp_path, text + "data: corpus\nparameters: {keyword: happy}").runs
    assert run.parameters["data"] == "corpus" and len(run.identity["data_sha256"]) == 64
    inside = spec(tmp_path, text + "data: corpus\nparameters: {keyword: happy}")
    with pytest.raises(ValueError, match="root and out must lie outside of the corpus"):
        read_sweep(inside, Overrides(tmp_path / "out", corpus / "root"))


def test_a_keyword_may_be_a_task_of_several_words(tmp_path, corpus):
    write_notebook(tmp_path / "d.ipynb", 'data: str = ""\nkeyword: str = "computer"', "pass")
    text = "notebooks: [d.ipynb]\nprofile: smoke\n"
    with (corpus / "manifest.csv").open("a") as manifest:
        for split in ("train", "validation", "test"):
            shutil.copy(corpus / split / "x.wav", corpus / split / "y.wav")
            manifest.write(f"{split}/y.wav,cat,{split},{split}\n")
    (run,) = plan(tmp_path, text + 'data: corpus\nparameters: {keyword: "happy,cat"}').runs
    assert run.parameters["keyword"] == "happy,cat"
    assert "'yes'" in problems(tmp_path, text + "data: corpus\nparameters: {keyword: twelve}")
    assert "'dog'" in problems(tmp_path, text + 'data: corpus\nparameters: {keyword: "happy,dog"}')
    assert "different words" in problems(tmp_path, text + 'data: corpus\nparameters: {keyword: "happy,happy"}')


def test_embedded_corpora_of_other_words_are_other_data(tmp_path):
    write_notebook(tmp_path / "d.ipynb", 'data: str = ""\nkeyword: str = "computer"', "pass")
    words = ["computer", "twelve", "yes,no"]
    runs = plan(tmp_path, f"notebooks: [d.ipynb]\nprofile: smoke\ngrid: {{keyword: {words}}}").runs
    recipes = [synthetic_recipe(clip_task(word), "smoke") for word in words]
    assert [r.identity["data_sha256"] for r in runs] == [f"synth-{content_address(recipe)}" for recipe in recipes]
    assert len({r.identity["data_sha256"] for r in runs}) == 3


def test_the_embedded_corpus_cannot_say_every_keyword(tmp_path):
    write_notebook(tmp_path / "d.ipynb", 'data: str = ""\nkeyword: str = "computer"', "pass")
    said = problems(tmp_path, "notebooks: [d.ipynb]\nparameters: {keyword: '<b>'}")
    assert "keyword must be letters and spaces, got '<b>'" in said


# ------------------------------------------------------------------ against papermill, and the notebooks that exist


def test_papermill_sees_the_parameters_that_we_see():
    for path in sorted((REPO / "notebooks").glob("*.ipynb")):
        ours = {p.name: p for p in declared_parameters(read_notebook(path), path.name)}
        theirs = papermill.inspect_notebook(str(path))
        assert list(ours) == list(theirs)
        for name, parameter in ours.items():
            assert theirs[name]["inferred_type_name"] == parameter.annotation
            assert eval(theirs[name]["default"]) == parameter.default
            assert theirs[name]["help"] == parameter.comment


def test_the_example_is_a_plan_of_four_runs():
    sweep = read_sweep(REPO / "notebooks" / "sweep_example.yaml", dry=True)
    assert [(r.parameters["bits"], r.parameters["seed"]) for r in sweep.runs] == [
        ([5], 0),
        ([5], 1),
        ([2], 0),
        ([2], 1),
    ]
    assert {r.parameters["root"] for r in sweep.runs} == {"../runs"}
    assert "4 runs, profile smoke" in sweep.describe()


# ------------------------------------------------------------------ typed values


@pytest.mark.parametrize(
    "text, annotation, value",
    [
        ("5", "int", 5),
        ("-5", "int", -5),
        ("0", "int", 0),
        ("5", "float", 5.0),
        (".5e1", "float", 5.0),
        ("TRUE", "bool", True),
        ("no", "str", "no"),
        ("b", "Literal['a', 'b']", "b"),
        ("2", "Literal[1, 2]", 2),
        ("null", "str | None", None),
        ("", "int | None", None),
        ("7", "int | None", 7),
        ("7", "str | int", 7),
        ("x", "str | int", "x"),
    ],
)
def test_written_scalars(text, annotation, value):
    got = typed_value(Text(text), annotation)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    "text, annotation, says",
    [
        ("yes", "bool", "must be bool, got 'yes'; write true or false"),
        ("1", "bool", "write true or false"),
        ("5.0", "int", "must be int, got '5.0'"),
        ("1e3", "int", "must be int, got '1e3'"),
        ("12:30", "int", "must be int, got '12:30'"),
        ("0x10", "int", "must be int, got '0x10'"),
        ("1_000", "int", "must be int, got '1_000'"),
        ("c", "Literal['a', 'b']", "must be one of 'a', 'b'; got 'c'"),
        ("x", "int | None", "must be int, got 'x'"),
        ("x", "int | float", r"must be int \| float, got 'x'"),
        ("x", "dict[str, int]", "write it as {name: value}"),
    ],
)
def test_written_scalars_of_another_type(text, annotation, says):
    with pytest.raises(ValueError, match=says):
        typed_value(Text(text), annotation)


def test_quotes_make_a_text():
    assert typed_value(Text("null", quoted=True), "str | None") == "null"
    assert typed_value(read_yaml("{a: ['1', no]}", "s")["a"], "list[str]") == ["1", "no"]
    assert typed_value(read_yaml("{a: {x: 1, y: 2}}", "s")["a"], "dict[str, float]") == {"x": 1.0, "y": 2.0}
    with pytest.raises(ValueError, match=r"must be list\[int\], got \{'x': '1'\}"):
        typed_value(read_yaml("{x: 1}", "s"), "list[int]")


@given(st.text())
def test_any_quoted_text_reaches_a_str_parameter_unchanged(text):
    tree = read_yaml(yaml.safe_dump({"word": text}), "s")
    assert typed_value(tree["word"], "str") == text


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)))
def test_any_number_is_read_as_the_number_it_is(number):
    (written,) = read_yaml(f"[{number!r}]", "s")
    annotation = "int" if isinstance(number, int) else "float"
    assert typed_value(written, annotation) == number


def test_one_specification_one_plan(folder):
    path = write_spec(folder / "s.yaml", notebooks=["a.ipynb"], grid={"word": ["x"]}, out="out", root="root")
    assert read_sweep(path).runs == read_sweep(path).runs
