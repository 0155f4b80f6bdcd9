"""What a student loses on its way into a web page: NDCG@10 of each user's last event.

    python bench/web.py --bundle runs/ml-100k/bundle

Through the bundle, through student.drec in Python, and through student.drec in Node. Users are
known by their earlier events only, since their features are not in the file. The last events are
those of the test part where the split was by user. A student that knows visits is asked at the time
of the last event.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distilrec import load
from distilrec.bundle.format import Bundle, read_bundle
from distilrec.engine.web import write_drec

K = 10


class Question(NamedTuple):
    """The events of a user but the last, (item, type, time), when that happened, and its item.
    Times are None where the student knows no visits.
    """

    events: list[tuple[str, str, float | None]]
    now: float | None
    target: str


def questions(bundle: Bundle) -> list[Question]:
    """Return the last event of every user as a question.

    The bundle says when a user's last event happened and which belong to its visit. Others are
    given a time two gaps before: more is not asked of times.
    """
    history, ids, types = bundle.history, bundle.catalogue.ids, bundle.manifest.event_types
    if history is None:
        raise SystemExit("the bundle has no histories")
    asked = []
    for user in range(len(history.users)):
        start, stop = history.offsets[user], history.offsets[user + 1]
        pairs = zip(history.items[start:stop], history.events[start:stop], strict=True)
        *before, (target, _) = [(ids[item], types[event]) for item, event in pairs]
        now, times = None, [None] * len(before)
        if history.last_times is not None and history.visits is not None:
            now, first = float(history.last_times[user, 0]), stop - start - history.visits[user]
            earlier = now - 2 * bundle.manifest.visit_gap
            times = [now if place >= first else earlier for place in range(len(before))]
        events = [(*pair, time) for pair, time in zip(before, times, strict=True)]
        asked.append(Question(events, now, target))
    return asked


def in_python(path: Path, asked: list[Question]) -> list[list[str]]:
    recommender = load(path)
    found = []
    for user, (events, now, _) in enumerate(asked):
        recommender.forget(str(user), history=True)
        recommender.update(
            [
                {"user_id": user, "item_id": item, "event_type": event, "timestamp": time}
                for item, event, time in events
            ]
        )
        answers = recommender.recommend(user, k=K, now=now)
        found.append([answer.item_id for answer in answers])
    return found


def in_node(file: Path, questions: list[Question]) -> list[list[str]]:
    asked, answered = file.with_name("users.json"), file.with_name("lists.json")
    asked.write_text(json.dumps(questions))
    program = Path(__file__).with_name("web.mjs")
    subprocess.run(["node", str(program), str(file), str(asked), str(answered)], check=True)
    lists: list[list[str]] = json.loads(answered.read_text())
    return lists


def ndcg(lists: list[list[str]], asked: list[Question]) -> float:
    gains = [
        1 / np.log2(2 + found.index(question.target)) if question.target in found else 0.0
        for found, question in zip(lists, asked, strict=True)
    ]
    return float(np.mean(gains))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("runs/ml-100k/bundle"))
    folder = parser.parse_args().bundle
    bundle = read_bundle(folder)
    asked = questions(bundle)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "student.drec"
        rounding = write_drec(bundle, file)
        print(f"{file.stat().st_size:,} bytes; {rounding}")
        lists = {
            "bundle": in_python(folder, asked),
            "file": in_python(file, asked),
            "file in Node": in_node(file, asked),
        }
    for name, found in lists.items():
        print(f"{name:14} NDCG@{K} {ndcg(found, asked):.4f} ({len(asked)} users)")
    same = np.mean([a == b for a, b in zip(lists["file"], lists["file in Node"], strict=True)])
    print(f"lists that are the same in Python and in Node: {same:.1%}")


if __name__ == "__main__":
    main()
