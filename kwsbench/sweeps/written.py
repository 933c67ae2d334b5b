"""YAML as it is written: mappings, lists and the source text of every scalar.

YAML decides by its look what a scalar is (``no`` a bool, ``012`` ten, ``12:30`` 750). Here a declared type
decides, later.
Nothing is constructed from the file: no tags, anchors or merges, no key twice.
"""

from __future__ import annotations

import yaml

from kwsbench.reports.parameters import Text, Written


def read_yaml(text: str, label: str) -> Written:
    """The document as texts, lists and mappings; ``label`` names it in errors.

    Raises ValueError for what is no YAML, and lists every key given twice and every tag, anchor or merge.
    """
    problems: list[str] = []
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if getattr(event, "anchor", None):
                problems.append(f"line {event.start_mark.line + 1}: anchors and aliases (& and *) are not supported")
            if getattr(event, "tag", None):
                problems.append(f"line {event.start_mark.line + 1}: tags are not supported, got {event.tag}")
        node = None if problems else yaml.compose(text, Loader=yaml.SafeLoader)
        tree = _tree(node, problems) if node is not None else {}
    except yaml.YAMLError as error:
        raise ValueError(f"{label} is not YAML: {error}") from error
    except RecursionError:
        raise ValueError(f"{label} is nested too deeply") from None
    if problems:
        raise ValueError(f"{label}: " + "; ".join(problems))
    return tree


def _tree(node: yaml.Node, problems: list[str]) -> Written:
    if isinstance(node, yaml.ScalarNode):
        return Text(node.value, quoted=node.style is not None)
    if isinstance(node, yaml.SequenceNode):
        return [_tree(child, problems) for child in node.value]
    assert isinstance(node, yaml.MappingNode)
    found: dict[str, Written] = {}
    for key, value in node.value:
        line = f"line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            problems.append(f"{line}: a key must be a plain text")
        elif key.value == "<<":
            problems.append(f"{line}: merges (<<) are not supported")
        elif key.value in found:
            problems.append(f"{line}: the key {key.value!r} is given twice")
        else:
            found[key.value] = _tree(value, problems)
    return found
