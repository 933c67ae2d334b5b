"""The parameters that a notebook declares, and what may be given for them.

A notebook declares them in the one cell tagged `parameters`, each with a type, a default and a comment::

    bits: list[int] = [8, 5, 4]  # weight widths to compare
    noise_db: float = 20.0  # SNR of the example
    corpus: str = ""  # folder of recordings; empty: the embedded corpus

Types: bool, int, float (takes an int too), str, Literal["a", "b"], list[T], tuple[T, ...], dict[str, T],
T | None. Everything is checked before a run starts; the notebook's code is read, never evaluated.
"""

from __future__ import annotations

import ast
import difflib
import io
import json
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbformat import NotebookNode

TAG = "parameters"
SCALARS = {"bool": bool, "int": int, "float": float, "str": str}


@dataclass(frozen=True)
class Parameter:
    """One declared parameter of a notebook."""

    name: str
    annotation: str  # as written, for example "list[int]"
    default: Any
    comment: str


def declared_parameters(notebook: NotebookNode, label: str) -> tuple[Parameter, ...]:
    """The parameters in order of declaration; `label` names the notebook in errors.

    Raises ValueError when there is not exactly one `parameters` cell, or a line in it is no typed literal.
    """
    cells = [c for c in notebook.cells if c.cell_type == "code" and TAG in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{label}: {len(cells)} cells are tagged {TAG!r}; a notebook declares them in one")
    source = cells[0].source
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(f"{label}: the parameters cell does not parse: {error}") from error
    comments = _comments_by_line(source)
    found: list[Parameter] = []
    for line in body:
        if isinstance(line, ast.ImportFrom) and line.module == "typing":
            continue
        if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value):
            raise ValueError(
                f"{label}: {ast.unparse(line)!r} in the parameters cell has no type; write for example "
                "`snr_db: float = 20.0  # what it means`"
            )
        name = line.target.id
        try:
            default = ast.literal_eval(line.value)
        except ValueError as error:
            raise ValueError(f"{label}: the default of {name!r} is no plain value") from error
        annotation = ast.unparse(line.annotation)
        if not _matches(default, line.annotation, f"{label}: {name}"):
            raise ValueError(f"{label}: the default {default!r} of {name!r} is no {annotation}")
        if name in (p.name for p in found):
            raise ValueError(f"{label}: {name!r} is declared twice")
        found.append(Parameter(name, annotation, default, comments.get(line.end_lineno or 0, "")))
    return tuple(found)


def validate_parameters(declared: Sequence[Parameter], given: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Every declared parameter with the given value or its default.

    Raises ValueError that lists every unknown name (with the nearest declared one) and every wrong type.
    """
    by_name = {p.name: p for p in declared}
    problems = []
    for name, value in given.items():
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"it declares: {', '.join(by_name) or 'none'}"
            problems.append(f"no parameter {name!r}; {hint}")
        elif not _matches(value, _annotation(by_name[name].annotation), name):
            problems.append(f"{name} must be {by_name[name].annotation}, got {value!r} ({_type_name(value)})")
    if problems:
        raise ValueError(f"{label}: " + "; ".join(problems))
    return {p.name: given.get(p.name, p.default) for p in declared}


def parse_parameters(declared: Sequence[Parameter], texts: Sequence[str], label: str) -> dict[str, Any]:
    """Command line texts ``name=value`` as values of the declared types; then see `validate_parameters`.

    The declared type decides, not the look of the text: '007' stays a str where a str is declared. Lists are
    written ``8,5,4`` or as JSON; None is written ``none``.
    """
    by_name = {p.name: p for p in declared}
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"{label}: parameters are given as name=value, got {text!r}")
        if name in values:
            raise ValueError(f"{label}: {name!r} is given twice")
        values[name] = _parse(value, _annotation(by_name[name].annotation)) if name in by_name else value
    validate_parameters(declared, values, label)
    return values


def _annotation(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _comments_by_line(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}


def _type_name(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _arguments(node: ast.Subscript) -> list[ast.expr]:
    return node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]


def _matches(value: Any, node: ast.expr, where: str) -> bool:
    """Whether the value has the annotated type; True and False are no numbers."""
    if isinstance(node, ast.Constant) and node.value is None:
        return value is None
    if isinstance(node, ast.Name) and node.id in SCALARS:
        if isinstance(value, bool):
            return node.id == "bool"
        return isinstance(value, (int, float)) if node.id == "float" else isinstance(value, SCALARS[node.id])
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _matches(value, node.left, where) or _matches(value, node.right, where)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        outer, inner = node.value.id, _arguments(node)
        if outer == "Literal":
            return any(type(value) is type(c) and value == c for c in map(ast.literal_eval, inner))
        if outer == "list" and len(inner) == 1:
            return isinstance(value, (list, tuple)) and all(_matches(v, inner[0], where) for v in value)
        if outer == "tuple" and len(inner) == 2 and ast.unparse(inner[1]) == "...":
            return isinstance(value, (list, tuple)) and all(_matches(v, inner[0], where) for v in value)
        if outer == "dict" and len(inner) == 2:
            return isinstance(value, dict) and all(
                _matches(k, inner[0], where) and _matches(v, inner[1], where) for k, v in value.items()
            )
    raise ValueError(
        f"{where}: cannot check the type {ast.unparse(node)!r}; use bool, int, float, str, Literal[...], "
        "list[T], tuple[T, ...], dict[str, T] or T | None"
    )


def _parse(text: str, node: ast.expr) -> Any:
    """The text as a value of the annotated type, or the text itself where it is none (then refused)."""
    if isinstance(node, ast.BinOp):
        # str takes any text, so it is asked last
        for option in sorted((node.left, node.right), key=lambda o: ast.unparse(o) == "str"):
            value = _parse(text, option)
            if _matches(value, option, text):
                return value
        return text
    if isinstance(node, ast.Constant):
        return None if text.lower() == "none" else text
    if isinstance(node, ast.Name):
        if node.id == "bool":
            return {"true": True, "false": False}.get(text.lower(), text)
        try:
            return SCALARS[node.id](text)
        except ValueError:
            return text
    assert isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name)
    inner = _arguments(node)
    if node.value.id == "Literal":
        return next((c for c in map(ast.literal_eval, inner) if str(c) == text), text)
    if text.startswith(("[", "{")) or node.value.id == "dict":
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text
    return [_parse(part.strip(), inner[0]) for part in text.split(",")] if text else []
