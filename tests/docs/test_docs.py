"""Every code block of README.md and docs/ does what it says; every link leads somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from docblocks import CODE, Block, dump, read_blocks

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What the tests may leave out, and how often. Anything else has to run.
ALLOWED_SKIPS = {
    "network: downloads 2.4 GB": 1,
    "network: downloads 4 GB": 1,
    "network: downloads 7 GB": 1,
    "network: needs the downloaded corpus": 2,
    "recursion: runs these tests": 1,
}
FAST_SECONDS, SLOW_SECONDS = 240, 1500
# Targets of the Makefile set up .venv first; here it is there.
STAMPS = [f".venv/stamp-{name}" for name in ("base", "synth", "test", "check", "docs", "cluster")]


def label(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


ALL = {label(page): read_blocks(page, label(page)) for page in PAGES}


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory) -> Path:
    """Artifacts that every page's blocks share: the smoke corpus and models are made once."""
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture
def workplace(tmp_path, shared_root) -> Path:
    """A folder as a clone looks: notebooks, sweeps, Makefile, .venv; its ``runs`` is the shared one."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("notebooks", "docs"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("_*", ".*"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md"):
        shutil.copy2(ROOT / name, folder)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    (folder / "runs").symlink_to(shared_root)
    return folder


def run(blocks: list[Block], folder: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run blocks in a process of their own, in ``folder``, with the environment's programs first."""
    tools = folder.parent / "tools"
    tools.mkdir()
    make = tools / "make"
    real = shutil.which("make") or "make"
    make.write_text(f'#!/bin/sh\nexec {real} {" ".join(f"-o {stamp}" for stamp in STAMPS)} "$@"\n')
    make.chmod(0o755)
    plan = folder.parent / "blocks.json"
    plan.write_text(dump(blocks), encoding="utf-8")
    kept = {k: v for k, v in os.environ.items() if k not in ("KWSBENCH_SPEECH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    home = folder.parent / "home"  # --install-completion writes there
    home.mkdir()
    environment = kept | {
        "HOME": str(home),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
        "PATH": os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONWARNINGS": "default",
    }
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("docblocks.py")), str(plan)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    return result


def runnable(blocks: list[Block], slow: bool) -> list[Block]:
    """The blocks of a page that a test runs: those marked slow only where minutes are allowed."""
    return [b for b in blocks if b.treatment != "skip" and (slow or b.treatment != "slow")]


def has_code(blocks: list[Block]) -> bool:
    return any(b.language in CODE or b.file for b in blocks)


@pytest.mark.parametrize("page", [p for p, blocks in ALL.items() if has_code(runnable(blocks, slow=False))])
def test_the_code_of_a_page_runs(page, workplace):
    result = run(runnable(ALL[page], slow=False), workplace, FAST_SECONDS)
    assert result.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p, blocks in ALL.items() if any(b.treatment == "slow" for b in blocks)])
def test_the_code_of_a_page_runs_with_its_slow_parts(page, workplace):
    result = run(runnable(ALL[page], slow=True), workplace, SLOW_SECONDS)
    assert result.returncode == 0


def test_what_is_left_out_is_on_the_list():
    skipped = Counter(b.detail for blocks in ALL.values() for b in blocks if b.treatment == "skip")
    assert skipped == Counter(ALLOWED_SKIPS)


def test_every_block_is_code_that_runs_or_text_that_is_no_code():
    for blocks in ALL.values():
        for block in blocks:
            assert block.language in (*CODE, "text") or block.file, f"{block.where}: language {block.language!r}"
            if block.language == "text" and not block.is_output:
                assert not re.search(r"^\s*(\$|make |kwsbench |pip |import |from )", block.text, re.M), block.where


def test_no_command_hides_in_an_indented_block():
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        hidden = re.findall(r"^(?:    |\t)(?:\$ |make |kwsbench |\.venv/|python ).*$", text, re.M)
        assert not hidden, f"{label(page)}: put these into a fenced block: {hidden}"


def test_every_how_to_has_its_four_parts():
    for page in sorted((ROOT / "docs" / "howto").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        assert text.startswith("# ") and "\nGoal: " in text, label(page)
        assert "## What can go wrong" in text and "you should see" in text.lower(), label(page)


def test_the_sweep_page_names_every_key():
    from kwsbench.sweeps.spec import COMBINING, KEYS

    text = (ROOT / "docs" / "howto" / "sweep.md").read_text(encoding="utf-8")
    table = text[text.index("| key |") : text.index("## 2.")]
    missing = [key for key in (*KEYS, *COMBINING) if f"`{key}`" not in table]
    assert not missing, f"docs/howto/sweep.md does not explain {missing}"


def test_the_table_of_profiles_is_that_of_the_code():
    from kwsbench.training.experiment import PROFILES

    text = (ROOT / "docs" / "howto" / "gpu-and-full-corpora.md").read_text(encoding="utf-8")
    steps = [
        f"{p.float_stage.steps}, {p.stage_one.steps}, {p.stage_two.steps}"
        for p in (PROFILES[name] for name in ("smoke", "default", "full"))
    ]
    assert f"| training steps (float, stage 1, stage 2) | {' | '.join(steps)} |" in text
    assert f"| seeds | {' | '.join(str(len(PROFILES[n].seeds)) for n in ('smoke', 'default', 'full'))} |" in text


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        path = page.relative_to(ROOT / "docs").as_posix()
        assert path == "README.md" or f"]({path})" in index, f"docs/README.md does not link {path}"


@pytest.mark.parametrize("page", [*ALL, "CONTRIBUTING.md", "data/README.md"])
def test_links_within_the_repository_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert file.exists(), f"{page} links {target}, which is not there"
        if anchor:
            assert anchor in anchors(file), f"{page} links {target}; headings there: {anchors(file)}"


def anchors(page: Path) -> list[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


# --------------------------------------------------------------------------------- the tests' own tools


def blocks_of(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    return read_blocks(page, "page.md")


def test_blocks_are_read_with_their_comments(tmp_path):
    blocks = blocks_of(
        tmp_path,
        "# T\n\n```python\nx = 1\n```\n- a\n\n  <!-- test: fails no -->\n  ```bash\n  exit 1\n  ```\n"
        "<!-- file: a.csv -->\n```csv\na,b\n```\n<!-- output -->\n```text\nhi\n```\n",
    )
    assert [(b.language, b.text, b.line) for b in blocks] == [
        ("python", "x = 1\n", 4),
        ("bash", "exit 1\n", 10),
        ("csv", "a,b\n", 14),
        ("text", "hi\n", 18),
    ]
    assert (blocks[1].treatment, blocks[1].detail) == ("fails", "no")
    assert blocks[2].file == "a.csv" and blocks[3].is_output


@pytest.mark.parametrize(
    "text, message",
    [
        ("```python\nx\n", "does not end"),
        ("<!-- test: slwo -->\n```bash\n```\n", "unknown treatment 'slwo'"),
        ("<!-- test: skip -->\n```bash\n```\n", "skip needs a text"),
        ("<!-- test: slow -->\nprose\n", "no block after it"),
    ],
)
def test_comments_that_are_not_understood_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        blocks_of(tmp_path, text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("```python\nx = 1\n```\n```python\nassert x == 2, x\n```\n", "page.md:5: AssertionError: 1"),
        ("```bash\nfalse\necho on\n```\n", "page.md:2: exit status 1"),
        ("```bash\nfalse | true\n```\n", "page.md:2: exit status 1"),
        ("<!-- test: fails no -->\n```bash\necho yes\n```\n", "page.md:3: exit status 0"),
        ("<!-- test: fails no -->\n```python\nx = 1\n```\n", "should have failed with 'no'"),
        ("```bash\necho a\n```\n<!-- output -->\n```text\nb\n```\n", "the block before it printed"),
        ("<!-- test: until ready -->\n```bash\necho off\n```\n", "ended by itself"),
    ],
)
def test_code_that_does_not_do_what_it_says_is_seen(tmp_path, text, message):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(AssertionError, match=message):
        run(blocks_of(tmp_path, text), folder, 60)


def test_a_server_runs_until_it_says_so_and_leaves_no_process(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    text = "<!-- test: until ready -->\n```bash\nsleep 300 & echo $! > pid; echo ready; wait\n```\n"
    run(blocks_of(tmp_path, text), folder, 60)
    state = Path(f"/proc/{(folder / 'pid').read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
