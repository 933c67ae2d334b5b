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
import math
import re
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbformat import NotebookNode

TAG = "parameters"
SCALARS = {"bool": bool, "int": int, "float": float, "str": str}
WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)")
LEADING_ZERO = re.compile(r"[+-]?0[0-9]+")
REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Parameter:
    """One declared parameter of a notebook."""

    name: str
    annotation: str  # as written, for example "list[int]"
    default: Any
    comment: str


@dataclass(frozen=True)
class Text:
    """A scalar of a file as it is written there, before anything decides what it is."""

    text: str
    quoted: bool = False


# What a file holds: texts, in lists and mappings.
Written = Text | list["Written"] | dict[str, "Written"]


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


def typed_value(written: Written, annotation: str) -> Any:
    """What is written in a file as a value of the declared type: the type decides, never the look of the text.

    ``007``, ``no``, ``1e3`` and ``12:30`` are texts where a str is declared, and no YAML octal, bool or sexagesimal
    where a number is. None is ``null``, ``~``, ``none`` or nothing, without quotes, where ``T | None`` is declared.

    Raises ValueError that says what is wrong with the text and what to write.
    """
    return _typed(written, _annotation(annotation))


def plain(written: Written) -> Any:
    """What is written, as plain texts, lists and mappings: for messages."""
    if isinstance(written, Text):
        return written.text
    if isinstance(written, list):
        return [plain(w) for w in written]
    return {key: plain(w) for key, w in written.items()}


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
        if node.id == "float":  # JSON has no NaN and no infinities
            return isinstance(value, (int, float)) and math.isfinite(value)
        return isinstance(value, SCALARS[node.id])
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


def _typed(written: Written, node: ast.expr) -> Any:
    if isinstance(node, ast.BinOp):
        return _typed_option(written, node)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id != "Literal":
        return _typed_collection(written, node)
    wanted = ast.unparse(node)
    if not isinstance(written, Text):
        raise ValueError(f"must be {wanted}, got {plain(written)!r}")
    if isinstance(node, ast.Subscript):
        return _typed_literal(written, node)
    if isinstance(node, ast.Constant):
        if not written.quoted and written.text.lower() in ("", "null", "~", "none"):
            return None
        raise ValueError(f"must be None, got {written.text!r}; write null")
    assert isinstance(node, ast.Name)
    return _typed_scalar(written, node.id)


def _typed_scalar(written: Text, wanted: str) -> Any:
    text = written.text
    if not text and not written.quoted:
        raise ValueError(f"must be {wanted}, and has no value" + ("; write '' for no text" * (wanted == "str")))
    if wanted == "str":
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise ValueError("must be str, and half a surrogate pair is no text")
        return text
    if written.quoted:
        raise ValueError(f"must be {wanted}, got the text {text!r}; take the quotes away")
    if wanted == "bool":
        if text.lower() not in ("true", "false"):
            raise ValueError(f"must be bool, got {text!r}; write true or false")
        return text.lower() == "true"
    if LEADING_ZERO.fullmatch(text):
        raise ValueError(f"must be {wanted}, and {text} is ambiguous (octal for YAML); write it without leading zeros")
    if not (WHOLE if wanted == "int" else REAL).fullmatch(text):
        raise ValueError(f"must be {wanted}, got {text!r}")
    value = SCALARS[wanted](text)
    if not math.isfinite(value):
        raise ValueError(f"must be {wanted}, and {text} is too large")
    return value


def _typed_literal(written: Text, node: ast.Subscript) -> Any:
    options = [ast.literal_eval(option) for option in _arguments(node)]
    for option in options:
        if str(option) == written.text and (isinstance(option, str) or not written.quoted):
            return option
    raise ValueError(f"must be one of {', '.join(map(repr, options))}; got {written.text!r}")


def _typed_option(written: Written, node: ast.BinOp) -> Any:
    # None first and str last: any text is a str.
    options = [o for o in _options(node) if not isinstance(o, ast.Constant)]
    if len(options) < len(_options(node)):
        try:
            return _typed(written, ast.Constant(None))
        except ValueError:
            pass
    why = None
    for option in sorted(options, key=lambda o: ast.unparse(o) == "str"):
        try:
            return _typed(written, option)
        except ValueError as error:
            why = why or error
    if len(options) == 1 and why:
        raise why
    raise ValueError(f"must be {ast.unparse(node)}, got {plain(written)!r}")


def _options(node: ast.expr) -> list[ast.expr]:
    return [*_options(node.left), *_options(node.right)] if isinstance(node, ast.BinOp) else [node]


def _typed_collection(written: Written, node: ast.Subscript) -> Any:
    wanted, inner = ast.unparse(node), _arguments(node)
    if isinstance(node.value, ast.Name) and node.value.id == "dict":
        if not isinstance(written, dict):
            raise ValueError(f"must be {wanted}, got {plain(written)!r}; write it as {{name: value}}")
        return {key: _typed(w, inner[1]) for key, w in written.items()}
    if isinstance(written, Text):
        raise ValueError(f"must be {wanted}, got {written.text!r}; write it in brackets: [{written.text}]")
    if isinstance(written, dict):
        raise ValueError(f"must be {wanted}, got {plain(written)!r}")
    return [_typed(w, inner[0]) for w in written]
