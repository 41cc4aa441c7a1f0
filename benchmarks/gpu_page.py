"""The page of what benchmarks/gpu.py found.

python benchmarks/gpu_page.py docs/results/gpu.json docs/results/gpu.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STEP = (
    "family",
    "plain_s",
    "teacher_s",
    "added_s",
    "distilled_s",
    "ratio",
    "bound",
    "over_bound",
    "peak_mb",
    "tapped_mb",
)
LOSS = ("way", "seconds", "speedup", "bytes_per_s", "of_copy")
RUN = ("family", "amp", "images_per_second", "waiting", "peak_mb", "batch_size", "size", "workers", "steps")
ENGINES = ("precision", "build_s", "megabytes", "p50_ms", "enqueue_ms", "matched", "slowest")


def page(data: dict[str, Any]) -> str:
    """Markdown of what `gpu.py` has written."""
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items() if version)
    lines = [f"# {'On a GPU' if data['ran_on'] == 'cuda' else 'The benchmarks for a GPU, tried on a processor'}", ""]
    if data["ran_on"] != "cuda":
        lines += [
            "**This ran on a CPU, with narrow models and small images: it shows that the chain works, no more.**",
            "",
        ]
    gpu = f", driver {data['driver']}, CUDA {data['cuda']}" if data["ran_on"] == "cuda" else ""
    lines += [
        f"{data['device']}{gpu}; {data['processor']} ({', '.join(data['instructions'])}); Python {data['python']}, "
        f"{versions}; commit {data['commit']}. One run each; times are medians in seconds, MB are 10^6 bytes.",
        "",
    ]
    for name, part in data["parts"].items():
        lines += [f"## {name}", "", *_part(part), ""]
    command = "make gpu" if data["ran_on"] == "cuda" else "python benchmarks/gpu.py --device cpu --quick"
    return "\n".join([*lines, f"Made by `{command}`; docs/performance.md says what each figure means.", ""])


def _part(part: dict[str, Any]) -> list[str]:
    if part["status"] == "not run":
        return ["Not run yet."]
    lines = [f"`{part['command']}`, {part['seconds']:.0f} s", ""]
    figures = part.get("figures")
    if isinstance(figures, dict):
        lines.append(
            f"{figures['passed']} tests passed, {figures['failed']} failed, {figures['skipped']} were skipped."
        )
        lines += [f"- failed: {name}" for name in figures["failures"]] + [
            f"- skipped: {why}" for why in figures["reasons"]
        ]
    elif figures and "not_run" in figures[0]:
        lines.append(f"Not run: {figures[0]['not_run']}")
    elif figures:
        columns = next(columns for columns in (STEP, LOSS, RUN, ENGINES) if set(columns) <= figures[0].keys())
        lines += table(columns, figures)
    if part["status"] == "failed":
        lines += ["", "Failed:", "", "```", part["said"].strip(), "```"]
    return lines


def table(columns: Sequence[str], rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table."""
    cells = [[_shown(row[column]) for column in columns] for row in rows]
    return [f"| {' | '.join(row)} |" for row in ([*columns], ["---"] * len(columns), *cells)]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return "float32" if value is None else str(value)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, target = map(Path, sys.argv[1:])
    target.write_text(page(json.loads(source.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
