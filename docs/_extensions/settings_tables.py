"""`{plan-tables}` and `{config-tables}`: every key of a `distill` block and of a config, as the code has them."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def attributes(kind: type) -> dict[str, str]:
    """What the `Attributes:` section of a docstring says of each."""
    _, _, section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    section = re.split(r"\n(?=\S)", section)[0]
    found = re.split(r"^(\w+): ", textwrap.dedent(section), flags=re.MULTILINE)[1:]
    return {name: " ".join(text.split()) for name, text in zip(found[::2], found[1::2], strict=True)}


def values(kind: Any) -> str:
    """The type of a field as one writes its values."""
    options = [one for one in get_args(kind) if one is not type(None)]
    if get_origin(kind) is not None and str(get_origin(kind)) == "typing.Literal":
        return ", ".join(f"`{one!r}`" for one in options)
    if type(None) in get_args(kind):
        return f"{values(options[0])}, `None`"
    if get_origin(kind) is tuple:
        return "a pair of numbers"
    if isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping):
        return "names: names"
    return {bool: "`True`, `False`", float: "a number", int: "a whole number", str: "text"}.get(
        kind, f"{kind.__name__}"
    )


def plan_rows(kind: Any, where: str) -> Iterator[tuple[str, str, str, str]]:
    """(key, values, default, meaning) of each field of a plan, blocks within it after its own."""
    from cskd_core.schema import WeightPair

    said, blocks = attributes(kind), []
    for name, hint in get_type_hints(kind).items():
        field = kind.__dataclass_fields__.get(name)
        if field is None:
            continue
        (inner, *_) = [one for one in get_args(hint) if one is not type(None)] or [hint]
        key = f"{where}.{name}"
        if dataclasses.is_dataclass(inner):
            blocks.append((inner, key))
            continue
        default = "required" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        yield key, values(hint), default, said.get(name, "weights of the term" if hint == WeightPair else "")
    for inner, key in blocks:
        optional = (
            "; `None` leaves the term out" if type(None) in get_args(get_type_hints(kind)[key.split(".")[-1]]) else ""
        )
        yield key, "a block" + optional, "", summary(inner)
        yield from plan_rows(inner, key)


def summary(kind: type) -> str:
    """The first paragraph of a docstring."""
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


class PlanTables(SphinxDirective):
    """Every key of the `distill` block."""

    def run(self) -> list[nodes.Node]:
        """The table of `DistillPlan`, and what the presets set."""
        from cskd_core.plan import PRESETS, DistillPlan

        rows = ((f"`{key}`", *rest) for key, *rest in plan_rows(DistillPlan, "distill"))
        presets = (
            (
                f"`{name}`",
                ", ".join(f"`{block}.{key}={value!r}`" for block, keys in preset.items() for key, value in keys.items())
                or "nothing",
            )
            for name, preset in PRESETS.items()
        )
        return self.parse_text_to_nodes(
            f"{table(('key', 'values', 'default', 'meaning'), rows)}\n\n{table(('preset', 'sets'), presets)}\n"
        )


class ConfigTables(SphinxDirective):
    """What a run does with every key of a config."""

    def run(self) -> list[nodes.Node]:
        """A table for each block of `vocabulary.TABLES`, and one for the hooks that are refused."""
        from cskd_train.files.vocabulary import PASSED_OVER_HOOKS, REFUSED_HOOKS, TABLES

        parts = []
        for block, keys in TABLES.items():
            if block == "distill":
                continue
            parts.append(f"**`{block}`**" if block else "**The config itself**")
            rows = ((f"`{key}`", _obeyed(rule), _escaped(rule.say)) for key, rule in keys.items())
            parts.append(table(("key", "", "another value"), rows))
        parts.append("**Hooks** (`custom_hooks`, `log_config.hooks`)")
        parts.append(
            f"Passed over, because a run does their work itself: {', '.join(f'`{one}`' for one in PASSED_OVER_HOOKS)}."
        )
        parts.append(
            table(("refused", "in its place"), ((f"`{name}`", _escaped(say)) for name, say in REFUSED_HOOKS.items()))
        )
        return self.parse_text_to_nodes("\n\n".join(parts) + "\n")


def _obeyed(rule: Any) -> str:
    if rule.obeyed:
        return "obeyed"
    if not rule.say:
        return "passed over"
    return "passed over, with a note otherwise" if rule.noted else "refused unless it changes nothing"


def _escaped(text: str) -> str:
    return re.sub(r"([\\\[\]<>*_`])", r"\\\1", text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("plan-tables", PlanTables)
    app.add_directive("config-tables", ConfigTables)
    return {"parallel_read_safe": True}
