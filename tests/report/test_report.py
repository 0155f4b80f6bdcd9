"""The report: what it says, and how it looks in a real Chromium, wide and narrow, light and dark, and to a screen reader."""

from __future__ import annotations

import msgspec
import pytest

from distilrec.measure.ranking import questions, rank
from distilrec.measure.statistics import Difference, Interval
from distilrec.report.comparison import ALONE, MEMBER, STUDENT, TEACHER, Comparison
from distilrec.report.fidelity import ChangedList, fidelity
from distilrec.report.page import figures, headline, table, verdict, write_report
from tests.pages import assert_needs_nothing_else, assert_readable


@pytest.fixture(scope="module")
def comparison(finished_run) -> Comparison:
    return msgspec.json.decode(
        (finished_run.folder / "comparison.json").read_bytes(), type=Comparison
    )


def test_it_is_whole_and_needs_nothing_else(comparison, tmp_path):
    write_report(comparison, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for row in table(comparison):
        for cell in row:
            assert cell in page
    for sentence in (
        headline(comparison),
        *verdict(comparison),
        *(figure.meaning for figure in figures(comparison)),
    ):
        assert sentence.replace("'", "&#39;") in page
    assert_needs_nothing_else(page, drawings=4)


def test_titles_cannot_break_out(comparison, tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    changed = (ChangedList(evil, 5, (evil,), (evil,), 0.0),)
    new = msgspec.structs.replace(comparison.fidelity, changed=changed)
    write_report(
        msgspec.structs.replace(comparison, dataset=evil, fidelity=new), tmp_path / "report.html"
    )
    assert "<img" not in (tmp_path / "report.html").read_text()


def test_it_says_which_student_to_serve(comparison):
    """By the validation part, on which a choice costs the figures of the test part nothing."""
    better, worse = 0.2, 0.1
    for student, alone, words in (
        (
            better,
            worse,
            "Serve the student (`bundle`): on validation, its NDCG@10 is 0.2000, 0.1000",
        ),
        (worse, better, "Serve the student without distillation (`bundle-baseline`)"),
    ):
        changed = msgspec.structs.replace(comparison, validation={STUDENT: student, ALONE: alone})
        assert words in "".join(verdict(changed))
    assert comparison.validation.keys() == {STUDENT, ALONE}


def difference(a, b, mean, reach):
    return Difference("ndcg@10", a, b, Interval(mean, mean - reach, mean + reach), 0.5)


@pytest.mark.parametrize(
    ("to_teacher", "to_alone", "said"),
    [
        (-0.01, 0.01, "The student is below its teacher; distillation made it better."),
        (0.01, -0.01, "The student is above its teacher; distillation made it worse."),
        (
            0.001,
            -0.001,
            "No loss against the teacher could be shown; no gain from distillation could be shown.",
        ),
        (
            None,
            None,
            "There is no teacher to compare with; what distillation brought was not measured.",
        ),
    ],
)
def test_the_headline_says_no_more_than_the_intervals(to_teacher, to_alone, said, comparison):
    differences = [
        difference(ALONE, TEACHER, 0.5, 0.1),
        difference(STUDENT, f"{MEMBER} 1: dnn", 0.5, 0.1),
    ]
    for other, mean in ((TEACHER, to_teacher), (ALONE, to_alone)):
        if mean is not None:
            differences.append(difference(STUDENT, other, mean, 0.005))
    assert headline(msgspec.structs.replace(comparison, differences=tuple(differences))) == said


def test_the_figures_are_those_of_the_table(comparison):
    teacher, student = comparison.row(TEACHER), comparison.row(STUDENT)
    values = [figure.value for figure in figures(comparison)]
    assert values[0] == f"{student.retention['ndcg@10']:.0%}"
    assert values[1] == f"{teacher.latency.p50 / student.latency.p50:,.0f}\N{MULTIPLICATION SIGN}"
    assert values[2] == f"{teacher.size / student.size:,.1f}\N{MULTIPLICATION SIGN}"
    mean = next(
        one.interval.mean for one in comparison.differences if (one.a, one.b) == (STUDENT, ALONE)
    )
    assert values[3] == f"{mean:+.4f}"


class Constant:
    """Shows everybody the same items, the given ones first."""

    def __init__(self, dataset, first):
        self.dataset, self.first = dataset, first

    def scores(self, histories):
        import numpy as np

        out = np.zeros((len(histories), self.dataset.catalogue_size), np.float32)
        out[:, self.first] = np.arange(len(self.first), 0, -1)
        return out


def test_changed_lists_are_those_of_groups_that_nobody_can_be_found_in(small):
    asked = questions(small, "test")
    histories = asked.histories
    latest = [int(histories.items[stop - 1]) for stop in histories.offsets[1:]]
    sizes = {item: latest.count(item) for item in latest}
    rankings = {
        TEACHER: [rank(Constant(small, list(range(20))), asked, 10)],
        STUDENT: [rank(Constant(small, list(range(20, 40))), asked, 10)],
    }
    lost = fidelity(small, rankings, TEACHER, STUDENT, 10)
    assert max(sizes.values()) >= 5  # or nothing is tested here
    expected = sorted((size for size in sizes.values() if size >= 5), reverse=True)[:5]
    assert [group.users for group in lost.changed] == expected
    for group in lost.changed:
        assert sizes[small.info.titles.index(group.after)] == group.users
        assert group.overlap == len(set(group.teacher) & set(group.student)) / 5
        assert set(group.teacher) <= set(small.info.titles[:20])
    same = fidelity(small, {name: rankings[TEACHER] for name in rankings}, TEACHER, STUDENT, 10)
    assert all(group.overlap == 1 and group.teacher == group.student for group in same.changed)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_can_be_read_by_everybody(finished_run, browser, scheme, width):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto((finished_run.folder / "report.html").as_uri())
    assert len(requests) == 1 and not complaints
    assert_readable(page, width)
    # The verdict is on the first screen.
    box = page.locator(".headline").bounding_box()
    assert box["y"] + box["height"] < 800
    # By keyboard: first past the navigation, then through it and the tables.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#quality"
    regions = page.locator("[role=region]")
    for region in regions.all():
        assert region.get_attribute("tabindex") == "0"
        assert page.locator(f"[id='{region.get_attribute('aria-labelledby')}']").count() == 1
    page.close()
