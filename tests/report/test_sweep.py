"""What a sweep finds, and what it says: never more than its tests allow."""

from __future__ import annotations

import re
import tomllib

import msgspec
import numpy as np
import pytest

from distilrec.measure.latency import Latency, measure_side_by_side
from distilrec.measure.statistics import Difference, Interval, holm, not_worse_test
from distilrec.report.sweep import (
    TEACHER,
    TEACHER_KEY,
    WITH,
    WITHOUT,
    Choice,
    Claim,
    Cost,
    Measured,
    Point,
    Sweep,
    choose,
    findings,
    point_of,
)
from distilrec.report.sweep_page import section, sweep_table, write_sweep_report
from distilrec.report.sweep_words import choice, headline, sentences
from tests.pages import assert_needs_nothing_else, assert_readable

USERS = 400


def gave(mean, *, seeds=1, noise=0.02, slices=()):
    """Return a model that gives its users about `mean`, with noise of its own."""
    rng = np.random.default_rng(int(1e4 * mean))
    own = rng.normal(0, noise, (seeds, USERS))
    everyone = np.random.default_rng(0).uniform(0, 1, USERS)

    def values(shift):
        return mean + shift + own + 0.3 * (everyone - everyone.mean())

    return Measured(values(0.01), values(0.0), {name: values(0.0)[:, :100] for name in slices})


def swept(with_, without, teacher=0.3, loss=0.05, seeds=1, **more):
    """Return a sweep whose students give these qualities by size, at share 1 or by share."""
    students = {
        (size, share, arm): gave(quality, seeds=seeds, slices=("tail items",))
        for arm, qualities in ((WITH, with_), (WITHOUT, without))
        for share, by_size in (qualities if 1.0 in qualities else {1.0: qualities}).items()
        for size, quality in by_size.items()
    }
    of_teacher = gave(teacher, slices=("tail items",))
    answers = findings(of_teacher, students, loss)
    points = [point_of(TEACHER_KEY, of_teacher, Cost(1_000, 4_000_000, 9.0, Latency(2_000, 3_000)))]
    points += [
        point_of(key, measured, Cost(10 * key[0], 1_000 * key[0], 1.0, Latency(key[0], 9.0)))
        for key, measured in students.items()
    ]
    of_all = [point for point in points[1:] if point.share == 1]
    chosen = choose(of_all, loss)
    best = max(point.validation.mean for point in of_all)
    found = Sweep(
        dataset="small",
        split="leave-one-out",
        users=USERS,
        kind="recurrent",
        unit="floats",
        seeds=seeds,
        loss=loss,
        missing=0,
        points=tuple(points),
        slice_sizes={"tail items": 100},
        choice=Choice(
            chosen.size,
            chosen.arm,
            chosen.validation.mean,
            best,
            {"kind": "recurrent", "dim": chosen.size},
        ),
        **vars(answers),
    )
    return msgspec.structs.replace(found, **more)


def says(sweep):
    return " ".join([headline(sweep), *sentences(sweep)])


def test_a_gain_at_small_sizes_is_said_with_what_it_replaces():
    sweep = swept({8: 0.28, 16: 0.29, 32: 0.31}, {8: 0.20, 16: 0.27, 32: 0.31}, seeds=3)
    assert headline(sweep) == (
        "Distillation makes the student better at 8 and 16 floats; at 32 floats no difference could "
        "be shown."
    )
    text = says(sweep)
    assert "The largest gain of NDCG@10 from distillation is at 8 floats, +0.0" in text
    assert "With distillation a student of 8 floats is as good as one of 16 without" in text
    assert "(8 kB instead of 16 kB)" in text
    assert "as good as one of 32 without" not in text
    assert (
        "The smallest student that is shown to be within 5% of the teacher's NDCG@10 has 16" in text
    )
    assert "answers in 16.0 us instead of 2.00 ms; without distillation 32 are needed." in text
    assert "There is little to distil: the teacher is not shown" in text
    assert "without distillation at 32 floats." in text
    assert "Tail items (100 held-out items): with distillation more at 8 and 16 floats are" in text
    assert "One training" not in text and "The time ran out" not in text


def test_nothing_is_claimed_without_proof():
    sweep = swept({8: 0.20, 16: 0.20}, {8: 0.20, 16: 0.2001}, loss=0.001)
    text = says(sweep)
    assert headline(sweep) == "No size shows a gain from distillation."
    assert "The largest difference that distillation makes to NDCG@10 could be chance" in text
    assert "With distillation no student is shown to be as good as a larger one without" in text
    assert "No student is shown to be within 0% of the teacher's NDCG@10." in text
    assert "Tail items (100 held-out items): no difference by distillation could be shown." in text
    assert "There is little" not in text
    assert "One training of each student" in text


def test_harm_is_said():
    sweep = swept({8: 0.10, 16: 0.10}, {8: 0.2, 16: 0.3})
    assert headline(sweep) == "Distillation makes the student worse at every size."
    text = says(sweep)
    assert "with distillation fewer at 8 and 16 floats are found in the first 10." in text
    assert "has 16 floats, and is trained without distillation." in text


def test_both_directions_at_one_time():
    sweep = swept({4: 0.2, 8: 0.1}, {4: 0.1, 8: 0.2})
    assert headline(sweep) == (
        "Distillation makes the student better at 4 floats and makes the student worse at 8 floats."
    )


def test_the_student_alone_can_be_enough():
    sweep = swept({8: 0.2, 16: 0.31}, {8: 0.31, 16: 0.31})
    assert "without distillation 8 are enough." in says(sweep)
    sweep = swept({8: 0.2, 16: 0.31}, {8: 0.1, 16: 0.1})
    assert "without distillation no size is." in says(sweep)


def test_shares_of_the_users_are_said_by_themselves():
    sweep = swept(
        {1.0: {8: 0.2, 16: 0.2}, 0.2: {8: 0.2, 16: 0.15}, 0.05: {8: 0.1, 16: 0.1}},
        {1.0: {8: 0.2, 16: 0.2}, 0.2: {8: 0.1, 16: 0.1}, 0.05: {8: 0.1, 16: 0.1}},
    )
    text = says(sweep)
    assert headline(sweep) == "No size shows a gain from distillation."
    assert "Trained on 20% of the users, the student is better at 8 and 16 floats; the most" in text
    assert "Trained on 5% of the users, the student is not shown to be better at any size" in text
    names = [row[0] for row in sweep_table(sweep)]
    assert "8 floats with" in names and "16 floats without, 5% of users" in names


def test_what_the_limit_of_time_left_out_is_said():
    sweep = swept({8: 0.2}, {8: 0.2}, missing=4)
    assert "The time ran out: 4 trainings are missing." in says(sweep)
    assert "as good as a larger one" not in says(sweep)  # there is no larger one


def test_the_choice_is_the_smallest_that_is_close_to_the_best_on_validation():
    sweep = swept({8: 0.2, 16: 0.295, 32: 0.3}, {8: 0.1, 16: 0.1, 32: 0.1})
    assert (sweep.choice.size, sweep.choice.arm) == (16, WITH)
    assert re.fullmatch(
        r"Chosen on validation: 16 floats with distillation, NDCG@10 0\.3\d+; the smallest student "
        r"within 5% of the best, which has 0\.3\d+\.",
        choice(sweep),
    )
    assert tomllib.loads(section(sweep)) == {"student": {"kind": "recurrent", "dim": 16}}
    alone = swept({8: 0.1, 16: 0.1}, {8: 0.3, 16: 0.2})
    assert choice(alone).endswith("; it is the best.")
    assert "# Without distillation: serve the bundle in bundle-baseline." in section(alone)


def interval(mean, reach):
    return Interval(mean, mean - reach, mean + reach)


@pytest.mark.parametrize(
    ("mean", "reach", "p", "margin", "shown"),
    [
        (0.02, 0.01, 0.01, None, "better"),
        (-0.02, 0.01, 0.01, None, "worse"),
        (0.02, 0.03, 0.01, None, ""),  # the interval, over seeds, says no
        (0.02, 0.01, 0.06, None, ""),  # the corrected test says no
        (-0.01, 0.005, 0.01, 0.02, "as good"),
        (-0.01, 0.015, 0.01, 0.02, ""),
        (-0.01, 0.005, 0.06, 0.02, ""),
    ],
)
def test_a_claim_needs_the_test_and_the_interval(mean, reach, p, margin, shown):
    claim = Claim(8, 16, WITH, 1.0, Difference("m", "a", "b", interval(mean, reach), p), p, margin)
    words = [("better", claim.better), ("worse", claim.worse), ("as good", claim.as_good)]
    said = [word for word, holds in words if holds]
    assert (shown in said) if shown else not said


def test_holm_corrects_as_in_its_paper():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_chance_of_one_false_claim():
    rng = np.random.default_rng(0)
    claims = [min(holm(rng.uniform(size=6).tolist())) < 0.05 for _ in range(4_000)]
    assert 0.035 < np.mean(claims) < 0.06


def test_not_worse_needs_more_than_a_difference_that_is_not_shown():
    few = np.random.default_rng(0).normal(0, 1, 20)
    assert not_worse_test(few, 0.05) > 0.05
    many = np.random.default_rng(0).normal(0, 1, 40_000)
    assert not_worse_test(many, 0.05) < 0.01
    assert not_worse_test(many - 0.1, 0.05) > 0.95
    assert not_worse_test(np.zeros(10), 0.05) == pytest.approx(1 / 2**10, abs=0.001)


def test_all_models_are_measured_in_turns():
    calls = []
    found = measure_side_by_side(
        {name: lambda n, name=name: calls.append((name, n)) for name in "ab"}, 5, together=2
    )
    assert set(found) == {"a", "b"}
    assert "".join(name for name, _ in calls) == "aaabbb" * 2 + "aabb"  # one to warm up, then two
    assert all(latency.p50 <= latency.p99 for latency in found.values())


def test_the_page_is_whole_and_needs_nothing_else(tmp_path):
    sweep = swept(
        {1.0: {8: 0.28, 16: 0.29}, 0.2: {8: 0.2, 16: 0.15}},
        {1.0: {8: 0.2, 16: 0.2}, 0.2: {8: 0.1, 16: 0.1}},
    )
    write_sweep_report(sweep, tmp_path / "sweep.html")
    page = (tmp_path / "sweep.html").read_text()
    for text in (
        headline(sweep),
        *sentences(sweep),
        *(c for row in sweep_table(sweep) for c in row),
    ):
        assert text.replace("'", "&#39;") in page
    assert_needs_nothing_else(page, drawings=4)  # time, bytes, and one of each size by share
    assert msgspec.json.decode(msgspec.json.encode(sweep), type=Sweep) == sweep


def test_names_cannot_break_out(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    sweep = swept({8: 0.2}, {8: 0.2}, dataset=evil)
    write_sweep_report(sweep, tmp_path / "sweep.html")
    assert "<img" not in (tmp_path / "sweep.html").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_can_be_read_by_everybody(browser, scheme, width, tmp_path):
    sweep = swept({8: 0.28, 16: 0.29}, {8: 0.2, 16: 0.2})
    write_sweep_report(sweep, tmp_path / "sweep.html")
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto((tmp_path / "sweep.html").as_uri())
    assert_readable(page, width)
    page.close()


def test_a_teacher_without_a_size_has_no_plot_of_its_own():
    point = Point(
        0, 1.0, TEACHER, interval(0, 1), interval(0, 1), (), (), {}, Cost(None, None, None, None)
    )
    sweep = swept({8: 0.2}, {8: 0.2})
    sweep = msgspec.structs.replace(sweep, points=(point, *sweep.points[1:]))
    assert sweep.teacher == point
    assert WITHOUT in {one.arm for one in sweep.students()}
