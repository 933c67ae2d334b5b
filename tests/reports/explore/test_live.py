"""Widgets where somebody can move them, static figures elsewhere."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kwsbench.reports.explore import live


@pytest.fixture
def kernel(monkeypatch):
    """A kernel whose client can answer questions, and no sign of a front end."""
    for name in ("JPY_SESSION_NAME", "KWSBENCH_LIVE"):
        monkeypatch.delenv(name, raising=False)
    for name in list(live.os.environ):
        if name.startswith("VSCODE_"):
            monkeypatch.delenv(name)
    kernel = SimpleNamespace(_allow_stdin=True)
    monkeypatch.setattr(live, "get_ipython", lambda: SimpleNamespace(kernel=kernel))
    return kernel


@pytest.mark.parametrize("name", ["JPY_SESSION_NAME", "VSCODE_PID"])
def test_a_front_end_is_live_but_not_papermill_started_from_it(monkeypatch, kernel, name):
    assert not live.is_live()
    monkeypatch.setenv(name, "1")
    assert live.is_live()
    kernel._allow_stdin = False
    assert not live.is_live(), "nbclient and papermill answer no questions"


def test_no_kernel_is_not_live(monkeypatch, kernel):
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    monkeypatch.setattr(live, "get_ipython", lambda: None)
    assert not live.is_live()


def test_the_parameter_decides_and_a_batch_run_overrules_it(monkeypatch, kernel):
    assert live.is_live("yes") and not live.is_live("no")
    monkeypatch.setenv("KWSBENCH_LIVE", "0")
    assert not live.is_live("yes")


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="live must be one of auto, yes, no, got 'maybe'"):
        live.is_live("maybe")
