"""docs/weights.md quotes what a run says and what other pages have recorded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cskd_core.plan import DistillPlan
from cskd_train.engine.preflight import TeacherCheck
from cskd_train.engine.terms import DistilledTerms
from cskd_train.results import RunResult, next_steps

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "weights.md").read_text()


def messages() -> list[str]:
    """What a run says of its teacher, of its terms, and at its end."""
    teacher = TeacherCheck(
        "teacher.pth", 0.021, 64, 200, 9.5, student_alone=Path("work_dirs/alone"),
        student_mean_average_precision=0.3, compared=0.021, compared_images=64,
    )  # fmt: skip
    plan = DistillPlan.parse({"teacher": {"checkpoint": "teacher.pth"}})
    values = {"loss": 36.1, "loss_cls": 1.0, "loss_pyramid_full": 35.1, "loss_tower_cls": 0.0}
    terms = DistilledTerms(plan, 200)
    of_terms = [line for step in range(1, 101) for line in terms.step(values, step)]
    result = RunResult(
        config="x.py", work_dir="work_dirs/x", seed=0, distilled=True, epochs=8, iterations=800, last={},
        best={"bbox_mAP": 0.2}, best_epoch=8, seconds=1.0, images_per_second=1.0, data_share=0.0, device="CPU",
        command="", started="", baseline={"bbox_mAP": 0.3, "seed": 0, "work_dir": "work_dirs/alone"},
    )  # fmt: skip
    return [*teacher.warnings, *of_terms, *next_steps(result)]


def pattern(quoted: str) -> str:
    """Of a sentence in which `...` leaves something out, and TERM, KEY and numbers stand for any."""
    text = re.escape(quoted).replace(r"\.\.\.", ".*").replace("TERM", r"\w+").replace("KEY", r"[\w.]+")
    return re.sub(r"\d+(\\\.\d+)?", r"[\\d.]+", text)


def test_the_sentences_are_those_of_a_run():
    quoted = re.findall(r"^\| `([^`]+)` \|", PAGE, flags=re.MULTILINE)
    said = messages()
    assert len(quoted) == 5
    assert [sentence for sentence in quoted if not any(re.match(pattern(sentence), line) for line in said)] == []


@pytest.mark.parametrize(
    ("page", "figures"),
    [
        (
            "gain",
            ["14.7", "13.9", "15.6", "1.1", "0.4", "1.9", "3.0", "2.2", "0.1", "4.3", "9.4", "5.7", "0.9", "12.2"],
        ),
        ("gain", ("32.6", "32.3", "32.2", "25.2")),
        ("cards", ("7.0",)),
        ("other_kinds", ("3.9", "4.0", "1.6", "13.1", "51.3", "9.0")),
    ],
)
def test_the_figures_are_those_of_the_pages_that_it_names(page, figures):
    assert f"(results/{page}.md)" in PAGE
    for text in (PAGE, (DOCS / "results" / f"{page}.md").read_text()):
        assert set(figures) <= set(re.findall(r"\d+\.\d+", text))
