"""What a notebook declares, and what is refused before it runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook

from kwsbench.reports.parameters import declared_parameters, parse_parameters, validate_parameters

SOURCE = """
from typing import Literal

profile: Literal["smoke", "default", "full"] = "smoke"  # how much to run
bits: list[int] = [8, 5]  # widths to run
snr_db: float = 20.0  # a comment with = and # inside
corpus: str = ""  # folder; empty: the embedded one
speaker: str | None = None
fast: bool = False
taps: tuple[float, ...] = (1, 2.5)
gains: dict[str, float] = {"a": 1.0}
"""


def notebook(source: str, tag: str = "parameters", cells: int = 1):
    return new_notebook(cells=[new_code_cell(source, metadata={"tags": [tag]}) for _ in range(cells)])


@pytest.fixture
def declared():
    return declared_parameters(notebook(SOURCE), "nb")


def test_names_types_defaults_and_comments_are_read_without_running_anything(declared):
    assert [p.name for p in declared][:4] == ["profile", "bits", "snr_db", "corpus"]
    assert declared[1].annotation == "list[int]" and declared[1].default == [8, 5]
    assert declared[1].comment == "widths to run"
    assert declared[2].comment == "a comment with = and # inside"


@pytest.mark.parametrize(
    "good",
    [
        {"bits": [4]},
        {"bits": (4, 1)},
        {"snr_db": 5},
        {"corpus": "007"},
        {"speaker": "x"},
        {"speaker": None},
        {"fast": True},
        {"taps": [1.0]},
        {"gains": {}},
        {"profile": "full"},
    ],
)
def test_values_of_the_declared_type_pass_and_the_rest_keeps_its_default(declared, good):
    values = validate_parameters(declared, good, "nb")
    assert values == {p.name: p.default for p in declared} | good


@pytest.mark.parametrize(
    "bad, says",
    [
        ({"bit": [4]}, "no parameter 'bit'; did you mean 'bits'?"),
        ({"zzzz": 1}, "no parameter 'zzzz'; it declares: profile, bits"),
        ({"bits": 4}, r"bits must be list\[int\], got 4 \(int\)"),
        ({"bits": [4.0]}, r"bits must be list\[int\], got \[4.0\]"),
        ({"bits": [True]}, "bits must be"),
        ({"snr_db": "5"}, "snr_db must be float, got '5' \\(str\\)"),
        ({"snr_db": False}, "snr_db must be float"),
        ({"corpus": 7}, "corpus must be str, got 7"),
        ({"corpus": None}, "got None"),
        ({"fast": 1}, "fast must be bool, got 1"),
        ({"gains": {"a": "b"}}, "gains must be"),
        ({"profile": "quick"}, "profile must be Literal"),
    ],
)
def test_unknown_names_and_wrong_types_are_errors(declared, bad, says):
    with pytest.raises(ValueError, match=says):
        validate_parameters(declared, bad, "nb")


def test_every_problem_is_named_at_once(declared):
    with pytest.raises(ValueError, match=r"02\.ipynb: no parameter 'bitz'.*; fast must be bool"):
        validate_parameters(declared, {"bitz": [1], "fast": "yes"}, "02.ipynb")


@pytest.mark.parametrize(
    "source, says",
    [
        ("bits = [8]", "'bits = \\[8\\]' in the parameters cell has no type"),
        ("bits: int", "has no type"),
        ("print('hello')", "has no type"),
        ("bits: int = 'a'", "the default 'a' of 'bits' is no int"),
        ("bits: int = len([1])", "the default of 'bits' is no plain value"),
        ("when: datetime = 1", "cannot check the type 'datetime'"),
        ("bits: int = = 1", "does not parse"),
        ("a: int = 1\na: int = 2", "'a' is declared twice"),
    ],
)
def test_a_parameters_cell_that_cannot_be_checked_is_refused(source, says):
    with pytest.raises(ValueError, match=says):
        declared_parameters(notebook(source), "nb")


@pytest.mark.parametrize("cells, tag", [(0, "parameters"), (2, "parameters"), (1, "other")])
def test_exactly_one_parameters_cell(cells, tag):
    with pytest.raises(ValueError, match="cells are tagged 'parameters'"):
        declared_parameters(notebook("a: int = 1", tag, cells), "nb")


def test_command_line_texts_take_the_declared_type_not_the_type_they_look_like(declared):
    texts = [
        "corpus=007",
        "bits=8,5,4",
        "snr_db=5",
        "fast=true",
        "speaker=none",
        "profile=full",
        "taps=[1, 2]",
    ]
    values = parse_parameters(declared, texts, "nb")
    assert values == {
        "corpus": "007",
        "bits": [8, 5, 4],
        "snr_db": 5.0,
        "fast": True,
        "speaker": None,
        "profile": "full",
        "taps": [1, 2],
    }
    assert type(values["snr_db"]) is float


@pytest.mark.parametrize(
    "text, says",
    [
        ("bits=8,five", r"got \[8, 'five'\]"),
        ("fast=1", "fast must be bool, got '1'"),
        ("snr_db=loud", "got 'loud'"),
        ("bitts=8", "did you mean 'bits'"),
        ("bits", "given as name=value, got 'bits'"),
        ("gains={", "gains must be"),
    ],
)
def test_bad_command_line_texts(declared, text, says):
    with pytest.raises(ValueError, match=says):
        parse_parameters(declared, [text], "nb")


def test_a_parameter_given_twice(declared):
    with pytest.raises(ValueError, match="'snr_db' is given twice"):
        parse_parameters(declared, ["snr_db=1", "snr_db=2"], "nb")


@given(st.text())
def test_any_text_reaches_a_str_parameter_unchanged(text):
    declared = declared_parameters(notebook('name: str = ""'), "nb")
    assert parse_parameters(declared, [f"name={text}"], "nb") == {"name": text}


@given(st.lists(st.integers()))
def test_lists_of_whole_numbers_survive_the_command_line(values):
    declared = declared_parameters(notebook("bits: list[int] = []"), "nb")
    text = "bits=" + ",".join(map(str, values))
    assert parse_parameters(declared, [text], "nb") == {"bits": values}
