"""What a sweep says, in sentences. Never more than its tests allow."""

from __future__ import annotations

from collections.abc import Sequence

from distilrec.report.sweep import WITH, WITHOUT, Claim, Point, Sweep
from distilrec.report.units import bytes_in_words, time_in_words


def headline(sweep: Sweep) -> str:
    """Return at which sizes distillation helps, in one sentence."""
    gains = [claim for claim in sweep.gains if claim.share == sweep.share]
    better = [claim.size for claim in gains if claim.better]
    worse = [claim.size for claim in gains if claim.worse]
    if not better and not worse:
        return "No size shows a gain from distillation."
    said = []
    for sizes, what in ((better, "better"), (worse, "worse")):
        if sizes:
            all_sizes = len(sizes) == len(gains) and len(gains) > 1
            where = "at every size" if all_sizes else f"at {sizes_in_words(sizes, sweep.unit)}"
            said.append(f"makes the student {what} {where}")
    rest = [claim.size for claim in gains if not claim.better and not claim.worse]
    more = f"; at {sizes_in_words(rest, sweep.unit)} no difference could be shown" if rest else ""
    return f"Distillation {' and '.join(said)}{more}."


def sentences(sweep: Sweep) -> list[str]:
    """Return what the sweep shows, one finding a sentence."""
    return [
        _largest_gain(sweep),
        *_replacements(sweep),
        _close_to_teacher(sweep),
        *_fuel(sweep),
        *_slices(sweep),
        *_shares(sweep),
        choice(sweep),
        *_limits(sweep),
    ]


def choice(sweep: Sweep) -> str:
    """Return which size is chosen, and why."""
    chosen = sweep.choice
    close = (
        "it is the best"
        if chosen.validation == chosen.best
        else f"the smallest student within {sweep.loss:.0%} of the best, which has "
        f"{chosen.best:.4f}"
    )
    return (
        f"Chosen on validation: {chosen.size} {sweep.unit} {chosen.arm}, NDCG@10 "
        f"{chosen.validation:.4f}; {close}."
    )


def sizes_in_words(sizes: Sequence[int], unit: str) -> str:
    """Return "4, 8 and 16 floats"."""
    words = [str(size) for size in sizes]
    return f"{_listed(words)} {unit}"


def difference_in_words(claim: Claim) -> str:
    """Return a difference with its interval and its corrected p-value."""
    interval = claim.difference.interval
    return (
        f"{interval.mean:+.4f}, 95% interval [{interval.low:+.4f}, {interval.high:+.4f}], "
        f"p = {claim.p_value:.2g}"
    )


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _largest_gain(sweep: Sweep) -> str:
    gains = [claim for claim in sweep.gains if claim.share == sweep.share]
    largest = max(gains, key=lambda claim: claim.difference.interval.mean)
    where = f"at {largest.size} {sweep.unit}, {difference_in_words(largest)}"
    if largest.better:
        return f"The largest gain of NDCG@10 from distillation is {where}."
    return f"The largest difference that distillation makes to NDCG@10 could be chance: {where}."


def _replacements(sweep: Sweep) -> list[str]:
    """Say for each size without distillation the smallest distilled student that is as good."""
    said = []
    for large in sweep.sizes()[1:]:
        good = [
            claim for claim in sweep.replacements if claim.other_size == large and claim.as_good
        ]
        if good:
            smallest = min(good, key=lambda claim: claim.size)
            times = _cheaper(sweep.point(smallest.size, WITH), sweep.point(large, WITHOUT))
            said.append(
                f"With distillation a student of {smallest.size} {sweep.unit} is as good as one of "
                f"{large} without{times}: {difference_in_words(smallest)} that it is worse by "
                f"{sweep.loss:.0%} or more."
            )
    if not said and sweep.replacements:
        said.append(
            "With distillation no student is shown to be as good as a larger one without "
            f"(worse by less than {sweep.loss:.0%})."
        )
    return said


def _cheaper(small: Point, large: Point) -> str:
    if not small.cost.size or not large.cost.size:
        return ""
    return f" ({bytes_in_words(small.cost.size)} instead of {bytes_in_words(large.cost.size)})"


def _close_to_teacher(sweep: Sweep) -> str:
    smallest = {
        arm: min(
            (claim.size for claim in sweep.to_teacher if claim.arm == arm and claim.as_good),
            default=None,
        )
        for arm in (WITH, WITHOUT)
    }
    within = f"within {sweep.loss:.0%} of the teacher's NDCG@10"
    size, alone = smallest[WITH], smallest[WITHOUT]
    if size is None and alone is None:
        return f"No student is shown to be {within}."
    if size is None:
        return (
            f"The smallest student that is shown to be {within} has {alone} {sweep.unit}, and is "
            "trained without distillation."
        )
    latency, slow = sweep.point(size, WITH).cost.latency, sweep.teacher.cost.latency
    time = (
        f"; it answers in {time_in_words(latency.p50)} instead of {time_in_words(slow.p50)}"
        if latency and slow
        else ""
    )
    without = "no size is"
    if alone is not None:
        without = f"{alone} are {'enough' if alone <= size else 'needed'}"
    return (
        f"The smallest student that is shown to be {within} has {size} {sweep.unit} with "
        f"distillation{time}; without distillation {without}."
    )


def _fuel(sweep: Sweep) -> list[str]:
    """Say where the teacher has no lead over the student without distillation."""
    none = [claim.other_size for claim in sweep.leads if not claim.better]
    if not none:
        return []
    return [
        "There is little to distil: the teacher is not shown to be better than the student without "
        f"distillation at {sizes_in_words(none, sweep.unit)}."
    ]


def _slices(sweep: Sweep) -> list[str]:
    """Say for cold users, rare items and their like at which sizes distillation helps."""
    said = []
    for name in dict.fromkeys(claim.slice for claim in sweep.slice_gains):
        claims = [claim for claim in sweep.slice_gains if claim.slice == name]
        what = f"{name[0].upper()}{name[1:]} ({sweep.slice_sizes[name]:,} held-out items)"
        parts = []
        for sizes, word in (
            ([claim.size for claim in claims if claim.better], "more"),
            ([claim.size for claim in claims if claim.worse], "fewer"),
        ):
            if sizes:
                parts.append(f"{word} at {sizes_in_words(sizes, sweep.unit)}")
        said.append(
            f"{what}: with distillation {' and '.join(parts)} are found in the first 10."
            if parts
            else f"{what}: no difference by distillation could be shown."
        )
    return said


def _shares(sweep: Sweep) -> list[str]:
    """Say what distillation brings where the students see fewer users."""
    said = []
    for share in sweep.shares()[:-1]:
        claims = [claim for claim in sweep.gains if claim.share == share]
        better = [claim.size for claim in claims if claim.better]
        largest = max(claims, key=lambda claim: claim.difference.interval.mean)
        where = (
            f"better at {sizes_in_words(better, sweep.unit)}; the most"
            if better
            else "not shown to be better at any size; the most"
        )
        said.append(
            f"Trained on {share:.0%} of the users, the student is {where} is at {largest.size} "
            f"{sweep.unit}, {difference_in_words(largest)}."
        )
    return said


def _limits(sweep: Sweep) -> list[str]:
    said = []
    if sweep.seeds == 1:
        said.append(
            "One training of each student: the intervals do not show how much trainings differ. "
            "Claims need --seeds 3."
        )
    if sweep.missing:
        said.append(
            f"The time ran out: {sweep.missing} trainings are missing. The same command trains "
            "them."
        )
    return said
