"""The code blocks of README.md and docs/: read from Markdown, and run in order by one process per file.

Only fenced blocks with a language are code: ``python`` (one namespace per file), ``bash`` (each block a script, stopped
by its first error). An HTML comment on the line before a block says how the tests treat it::

    <!-- file: NAME -->        the block is saved as NAME in the working folder
    <!-- test: slow -->        takes minutes, or needs such a block before it: runs in `make test-all` only
    <!-- test: until TEXT -->  a server: runs until it prints TEXT, and is then ended
    <!-- test: fails TEXT -->  refuses with TEXT in what it prints
    <!-- test: skip REASON --> is not run; REASON is one of those that test_docs.py allows
    <!-- output -->            a ``text`` block: what the block before it prints, compared

Run as a program it takes a JSON file of blocks and runs them in the current folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<language>[^\s`]*)[^\n`]*$")
MARK = re.compile(r"^ *<!-- (?P<kind>file|test|output):? ?(?P<rest>.*?) *-->$")
CODE = ("python", "bash")
TREATMENTS = ("", "slow", "until", "fails", "skip")
SERVER_SECONDS = 60.0


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, what it is, and how the tests treat it."""

    path: str
    line: int  # of its first line of content
    language: str
    text: str
    file: str = ""
    treatment: str = ""
    detail: str = ""  # of the treatment: a text that is waited for, or a reason
    is_output: bool = False

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"


def read_blocks(path: Path, label: str) -> list[Block]:
    """The fenced blocks of a Markdown file in order. Raises ValueError for what is not understood."""
    blocks: list[Block] = []
    lines = path.read_text(encoding="utf-8").split("\n")
    marks: dict[str, str] = {}
    i = 0
    while i < len(lines):
        mark, fence = MARK.match(lines[i]), FENCE.match(lines[i])
        if mark:
            marks[mark["kind"]] = mark["rest"]
        elif fence:
            end = next((j for j in range(i + 1, len(lines)) if lines[j].strip() == fence["ticks"]), None)
            if end is None:
                raise ValueError(f"{label}:{i + 1}: a block that does not end")
            text = "\n".join(line.removeprefix(fence["indent"]) for line in lines[i + 1 : end]) + "\n"
            treatment, _, detail = marks.get("test", "").partition(" ")
            if treatment not in TREATMENTS:
                raise ValueError(f"{label}:{i}: unknown treatment {treatment!r}; choose one of {TREATMENTS}")
            if treatment in ("until", "fails", "skip") and not detail:
                raise ValueError(f"{label}:{i}: {treatment} needs a text")
            blocks.append(
                Block(
                    label, i + 2, fence["language"], text, marks.get("file", ""), treatment, detail, "output" in marks
                )
            )
            i, marks = end, {}
        elif marks:
            raise ValueError(f"{label}:{i + 1}: a comment for a block, and no block after it")
        i += 1
    return blocks


def run_blocks(blocks: list[Block]) -> None:
    """Run blocks here, in order. Raises AssertionError that names the block."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks:
        if block.is_output:
            assert printed.strip() == block.text.strip(), f"{block.where}: the block before it printed\n{printed}"
        elif block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            printed = _run_python(block, namespace)
        elif block.language == "bash":
            printed = _run_server(block) if block.treatment == "until" else _run_bash(block)


def _run_python(block: Block, namespace: dict[str, Any]) -> str:
    out = io.StringIO()
    # Line numbers of a traceback are those of the document.
    code = compile("\n" * (block.line - 1) + block.text, block.path, "exec")
    try:
        with contextlib.redirect_stdout(out):
            exec(code, namespace)
    except Exception as error:
        if block.treatment == "fails" and block.detail in str(error):
            return out.getvalue()
        raise AssertionError(f"{block.where}: {type(error).__name__}: {error}") from error
    assert block.treatment != "fails", f"{block.where}: should have failed with {block.detail!r}"
    return out.getvalue()


def _bash(block: Block) -> list[str]:
    # The colon keeps bash from becoming its last command: a program may look for the shell that called it.
    return ["bash", "-euo", "pipefail", "-c", f"{block.text}:\n"]


def _run_bash(block: Block) -> str:
    result = subprocess.run(_bash(block), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    told = f"{block.where}: exit status {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    if block.treatment == "fails":
        assert result.returncode != 0 and block.detail in result.stdout + result.stderr, told
    else:
        assert result.returncode == 0, told
    return result.stdout


def _run_server(block: Block) -> str:
    """Wait for the text, then end the server and all that it started."""
    with open("server.log", "w+", encoding="utf-8") as log:
        server = subprocess.Popen(
            _bash(block), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            deadline = time.monotonic() + SERVER_SECONDS
            while block.detail not in (said := Path("server.log").read_text(encoding="utf-8")):
                assert server.poll() is None, f"{block.where}: ended by itself\n{said[-3000:]}"
                assert time.monotonic() < deadline, f"{block.where}: no {block.detail!r}\n{said[-3000:]}"
                time.sleep(0.1)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
    return said


def dump(blocks: list[Block]) -> str:
    """Blocks as JSON, for the program below."""
    return json.dumps([asdict(block) for block in blocks])


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    run_blocks([Block(**values) for values in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))])
