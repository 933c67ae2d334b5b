"""The API reference: made from the docstrings, every public thing described, nothing asked off-site."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "kwsbench"


def public(path: Path) -> dict[str, str]:
    """Docstrings of a module, its public classes and functions, and the public methods and properties of these."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    found = {module: ast.get_docstring(tree) or ""}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found[f"{module}.{node.name}"] = ast.get_docstring(node) or ""
    return found


EVERY = {name: text for path in sorted(PACKAGE.rglob("*.py")) for name, text in public(path).items()}


def test_everything_public_is_described():
    assert len(EVERY) > 400
    empty = [name for name, text in EVERY.items() if not text.strip()]
    assert not empty, f"give these a docstring: {empty}"


@pytest.fixture(scope="module")
def api(tmp_path_factory) -> Path:
    """The pages as `make docs` writes them, into a folder of their own."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make")
    folder = tmp_path_factory.mktemp("a clone")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, folder)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    stamps = [word for name in ("base", "docs") for word in ("-o", f".venv/stamp-{name}")]
    result = subprocess.run([make, *stamps, "docs"], cwd=folder, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "reports" / "api"


def test_every_module_has_a_page_and_every_function_an_entry(api):
    pages = {p.relative_to(api).with_suffix("").as_posix().replace("/", "."): p for p in api.rglob("*.html")}
    wanted = {
        m for m in EVERY if (ROOT / m.replace(".", "/")).is_dir() or (ROOT / f"{m.replace('.', '/')}.py").is_file()
    }
    private = {"kwsbench.cli"}
    assert wanted - private <= set(pages)
    text = pages["kwsbench.metrics.det"].read_text(encoding="utf-8")
    for name in ("det_curve", "DetCurve", "operating_point", "evaluate"):
        assert f'id="{name}"' in text
    assert "Compare FDRs of one evaluation set only" in text  # the module's definitions, in full


def test_pages_hold_no_address_that_a_browser_would_ask(api):
    loads = re.compile(
        r"""<(?:script|img|iframe|source)[^>]+src=["']?(?:https?:)?//"""
        r"""|<link[^>]+href=["']?(?:https?:)?//|@import\s+url|url\(["']?https?:"""
    )
    for page in [*api.rglob("*.html"), *api.rglob("*.js")]:
        text = page.read_text(encoding="utf-8")
        assert not loads.search(text), page
        assert str(ROOT) not in text and str(Path.home()) + "/" not in text, f"{page} names a path of this machine"


@pytest.mark.browser
def test_a_page_opens_and_searches_without_a_request(api, browser):
    browser.get("about:blank")  # the page of another test may still complain, and its window may have been a phone's
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get((api / "kwsbench.html").as_uri())
    box = browser.find_element("css selector", "input[type=search]")
    box.send_keys("operating_point")
    deadline = time.monotonic() + 20
    # Read in one go: the search replaces the element while it is looked at.
    while "operating_point" not in (found := browser.execute_script("return document.querySelector('main').innerText")):
        assert time.monotonic() < deadline, found[:500]
        time.sleep(0.1)
    assert "kwsbench.metrics.det" in found
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    # The browser's own pages are chrome:.
    assert asked and all(url.startswith(("file:", "data:", "blob:", "chrome:", "about:")) for url in asked), asked
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
