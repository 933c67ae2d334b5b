"""Every command explains itself with an example that its own parser takes."""

from __future__ import annotations

import re
import shlex
import sys

import pytest
from typer.main import get_command

from kwsbench.cli import app, main

EXAMPLE = re.compile(r"^\s*Examples?:\s*(.*)$", re.M)
ROOT = get_command(app)


def commands(group, trail: tuple[str, ...] = ()):
    """Every command below a group, with the words that name it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*trail, name))
        else:
            yield (*trail, name), command


ALL = dict(commands(ROOT))


def examples(command) -> list[str]:
    """What stands after ``Example:`` in a command's help; a line that ends in a backslash goes on."""
    text = re.sub(r"\\\n\s*", " ", command.help or "")
    return [line.strip() for line in EXAMPLE.findall(text) if line.strip()]


def parse(line: str):
    """The command that ``line`` names and its parsed parameters; nothing runs."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    assert words and words.pop(0) == "kwsbench", f"an example begins with kwsbench: {line!r}"
    command, trail = ROOT, ()
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"no command {words[:1]} in {line!r}"
        trail = (*trail, words[0])
        command = command.commands[words.pop(0)]
    context = command.make_context(" ".join(trail), words, resilient_parsing=False)
    return trail, context.params


@pytest.mark.parametrize("trail", ALL, ids=" ".join)
def test_every_command_has_a_valid_example(trail, monkeypatch):
    monkeypatch.delenv("KWSBENCH_SPEECH", raising=False)
    found = examples(ALL[trail])
    assert found, f"`kwsbench {' '.join(trail)} --help` shows no line `Example: kwsbench ...`"
    for line in found:
        named, _ = parse(line)
        assert named == trail, f"the example of {' '.join(trail)} calls {' '.join(named)}: {line!r}"


@pytest.mark.parametrize("trail", ALL, ids=" ".join)
def test_every_option_and_command_says_what_it_is(trail):
    command = ALL[trail]
    assert (command.help or "").strip().splitlines()[0].endswith("."), command.help
    silent = [p.name for p in command.params if p.param_type_name == "option" and not p.help and p.name != "help"]
    assert not silent, f"options of {' '.join(trail)} without help: {silent}"


@pytest.mark.parametrize(
    "line, error",
    [
        ("kwsbench doctor --nonsense", "No such option"),
        ("kwsbench doctor --jobs many", "valid integer"),
        ("kwsbench data check", "Missing parameter: path|Missing argument"),
    ],
)
def test_a_wrong_example_would_be_seen(line, error):
    with pytest.raises(Exception, match=error):
        parse(line)


def test_an_example_of_an_unknown_command_would_be_seen():
    with pytest.raises(AssertionError, match="no command"):
        parse("kwsbench reprot x")


@pytest.mark.parametrize("speaks", [False, True])
def test_ctrl_c_says_once_that_the_same_command_goes_on(monkeypatch, capsys, speaks):
    def interrupted(*_):
        if speaks:  # a command that catches it and exits on its own, as `sweep` does
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                print("what is finished is kept", file=sys.stderr)
                sys.exit(130)
        raise KeyboardInterrupt

    monkeypatch.setattr("kwsbench.data.corpora.open_corpus", interrupted)
    monkeypatch.setattr("sys.argv", ["kwsbench", "data", "check", "."])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    assert ("run the same command again" in capsys.readouterr().err) == (not speaks)


def test_recognise_refuses_what_it_cannot_do(monkeypatch, tmp_path, capsys):
    for words, message in (
        (["--encoders", "gru"], "--encoders takes some of lstm, conformer, got 'gru'"),
        (["--bits", "9"], "bits"),
        (["--seeds", "-1"], "--seeds takes integers from 0"),
        (["--task", "commands"], "needs a folder of recordings"),
        (["--data", str(tmp_path / "absent")], "absent"),
        (["--profile", "huge"], "unknown profile 'huge'"),
    ):
        command = ["kwsbench", "recognise", *words, "--root", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2 and message in capsys.readouterr().err
