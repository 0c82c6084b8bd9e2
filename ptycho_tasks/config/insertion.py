"""Setting a value in the text of a ptycho.yaml: all else, comments too, stays as it is.

Places are found in the nodes of the parsed text, so that sections may stand on lines of their own
(`source:` and below it) or in braces (`source: {file: scan.npz}`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml


def put_value(text: str, section: tuple[str, ...], key: str, value: Any) -> str:
    """The text with `key: value` in a section.

    It takes the place of the value that is there, else of a line that holds the key commented out,
    else it stands below `file`, which the section must have. A text in the section's place is the
    `file` of the section.

    Args:
        text: valid YAML.
        section: keys that lead to it; it must be there.
        key: of the section.
        value: JSON.
    """
    node = _find(yaml.compose(text, yaml.SafeLoader), section)
    if isinstance(node, yaml.ScalarNode):
        inner = f"{{file: {_text_of(text, node)}, {key}: {show_value(value)}}}"
        return _replace(text, node, inner)
    for key_node, value_node in node.value:
        if key_node.value == key:
            return _replace(text, value_node, show_value(value))
    if node.flow_style:
        return _put_in_braces(text, node, f"{key}: {show_value(value)}")
    return _put_line(text, node, key, show_value(value))


def show_value(value: Any) -> str:
    """A value in YAML, in a line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {show_value(part)}" for key, part in value.items()) + "}"
    return str(value) if isinstance(value, str) and value.isidentifier() else json.dumps(value)


def _find(node: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        node = next(child for name, child in node.value if name.value == key)
    return node


def _text_of(text: str, node: Any) -> str:
    return text[node.start_mark.index : node.end_mark.index]


def _replace(text: str, node: Any, new: str) -> str:
    first, end = node.start_mark.index, node.end_mark.index
    is_empty = first == end  # nothing stands behind the colon
    return f"{text[:first]}{' ' if is_empty else ''}{new}{text[end:]}"


def _put_in_braces(text: str, node: Any, new: str) -> str:
    """Behind the last value: a comma and comments may follow."""
    if not node.value:
        end = node.end_mark.index - 1
        return f"{text[:end]}{new}{text[end:]}"
    end = node.value[-1][1].end_mark.index
    return f"{text[:end]}, {new}{text[end:]}"


def _put_line(text: str, node: Any, key: str, value: str) -> str:
    """In the line that holds the key commented out, or below `file`."""
    lines = text.splitlines(keepends=True)
    file_key, file_value = next(pair for pair in node.value if pair[0].value == "file")
    indent = " " * file_key.start_mark.column
    ending = "\r\n" if lines[0].endswith("\r\n") else "\n"
    new = f"{indent}{key}: {value}{ending}"
    first = node.start_mark.line
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    marks = (f"{indent}# {key}:", f"{indent}#{key}:")
    for number in range(first, min(node.end_mark.line + 1, len(lines))):
        if lines[number].startswith(marks):
            lines[number] = new
            return "".join(lines)
    at = file_value.end_mark.line + (file_value.end_mark.column > 0)
    if not lines[at - 1].endswith("\n"):
        lines[at - 1] += ending
    lines.insert(at, new)
    return "".join(lines)
