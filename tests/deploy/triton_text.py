"""Reads Triton's config.pbtxt by the schema that `tests/reliability/triton_schema.py` took from Triton's own client."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

SCHEMA: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "triton_schema.json").read_text())
_TOKEN = re.compile(r'\s*("(?:[^"\\\n]|\\.)*"|[A-Za-z_][A-Za-z_0-9]*|-?\d+|[\[\]{}:,])')


def read_config(text: str) -> dict[str, Any]:
    """The fields of a `ModelConfig`; repeated ones are lists, `parameters` a dictionary of their texts.

    Raises:
        ValueError: it is no text format, or a field or a value is none of the schema.
    """
    tokens, place = [], 0
    while text[place:].strip():
        found = _TOKEN.match(text, place)
        if found is None:
            raise ValueError(f"no token: {text[place : place + 40]!r}")
        tokens.append(found[1])
        place = found.end()
    config = _message(tokens, "ModelConfig")
    if tokens:
        raise ValueError(f"{tokens[0]!r} closes nothing")
    config["parameters"] = {one["key"]: one["value"]["string_value"] for one in config.get("parameters", [])}
    return config


def _message(tokens: list[str], name: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    while tokens and tokens[0] != "}":
        field = tokens.pop(0)
        if field not in SCHEMA[name]:
            raise ValueError(f"{name} has no field {field}")
        kind, repeated = SCHEMA[name][field]
        if tokens[0] == "{":
            tokens.pop(0)
            value: Any = _message(tokens, kind)
            if tokens.pop(0) != "}":
                raise ValueError(f"{field} is not closed")
        elif tokens.pop(0) != ":":
            raise ValueError(f"no value of {field}")
        elif tokens[0] == "[":
            tokens.pop(0)
            value = [_scalar(tokens.pop(0), kind)]
            while tokens.pop(0) == ",":
                value.append(_scalar(tokens.pop(0), kind))
        else:
            value = _scalar(tokens.pop(0), kind)
        if isinstance(value, list) and not repeated:
            raise ValueError(f"{field} is one value")
        if not repeated and field in fields:
            raise ValueError(f"{field} stands twice")
        if repeated and not isinstance(value, list):
            value = [*fields.get(field, []), value]
        fields[field] = value
    return fields


def _scalar(token: str, kind: Any) -> Any:
    if kind == "string" and token.startswith('"'):
        return json.loads(token)
    if kind == "number" and token.lstrip("-").isdigit():
        return int(token)
    if isinstance(kind, list) and token in kind:
        return token
    raise ValueError(f"{token} is no {kind}")
