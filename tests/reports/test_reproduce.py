"""The command that makes a run again gives the same parameters; notebooks are found by path and by name."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwsbench.reports.parameters import Parameter, parse_parameters
from kwsbench.reports.reproduce import find_notebooks, parameter_text, run_command
from kwsbench.reports.status import RunStatus

# A float is written as such: integers beyond 2^53 would lose digits.
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))
TYPED = {
    "int": st.integers(),
    "float": numbers,
    "bool": st.booleans(),
    "str": texts,
    "list[int]": st.lists(st.integers()),
    "list[float]": st.lists(numbers),
    "list[str]": st.lists(texts),
    "tuple[int, ...]": st.lists(st.integers()),
    "dict[str, int]": st.dictionaries(texts, st.integers()),
    "int | None": st.none() | st.integers(),
    "list[list[int]]": st.lists(st.lists(st.integers())),
}


def status(parameters, given_names, **changes):
    fields = dict(
        name="n", notebook="04_stage two.ipynb", title="T", state="passed", profile="smoke", started_utc="now"
    )
    return RunStatus(**{**fields, **changes}, parameters=parameters, given=tuple(given_names))


@given(st.data())
def test_the_command_gives_the_same_parameters(data):
    kinds = data.draw(st.lists(st.sampled_from(sorted(TYPED)), min_size=1, max_size=4))
    declared = [Parameter(f"p{i}", kind, None, "") for i, kind in enumerate(kinds)]
    values = {d.name: data.draw(TYPED[d.annotation]) for d in declared}
    words = shlex.split(run_command(status(values, values)))
    assert words[:5] == ["kwsbench", "run", "04_stage two.ipynb", "--profile", "smoke"]
    assert set(words[5::2]) == {"-p"}
    assert parse_parameters(declared, words[6::2], "it") == values


def test_what_was_left_at_its_default_and_the_folder_of_caches_are_left_out():
    command = run_command(status({"bits": [4], "seed": 0, "root": "../runs", "profile": "full"}, ["bits", "root"]))
    assert command == "kwsbench run '04_stage two.ipynb' --profile full -p bits=4"


@pytest.mark.parametrize(
    "value, text",
    [([], "[]"), (["a", "b,c"], '["a", "b,c"]'), ([1.5, 2], "1.5,2"), ([True], "[true]"), ({"a": 1}, '{"a": 1}')],
)
def test_lists_and_dictionaries_have_one_form(value, text):
    assert parameter_text(value) == text


def test_notebooks_are_found_by_path_and_by_name(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("01_a.ipynb", "02_b.ipynb", "99_explore.ipynb"):
        (folder / name).write_text("{}")
    assert [p.name for p in find_notebooks([], folder)] == ["01_a.ipynb", "02_b.ipynb"]
    chosen = find_notebooks(["99_explore", "02_b.ipynb", str(folder / "01_a.ipynb")], folder)
    assert [p.name for p in chosen] == ["99_explore.ipynb", "02_b.ipynb", "01_a.ipynb"]
    with pytest.raises(ValueError, match=r"no notebook '03', here or in .*; that folder has: 01_a.ipynb, 02_b.ipynb"):
        find_notebooks(["03"], folder)
    with pytest.raises(ValueError, match="no notebooks NN"):
        find_notebooks([], tmp_path)
