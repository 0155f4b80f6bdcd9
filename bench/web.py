"""What a student loses on its way into a web page: NDCG@10 of each user's last event.

    python bench/web.py --bundle runs/ml-100k/bundle

Through the bundle, through student.drec in Python, and through student.drec in Node. Users are
known by their earlier events only, since their features are not in the file. The last events are
those of the test part where the split was by user.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from distilrec import load
from distilrec.bundle.format import Bundle, read_bundle
from distilrec.engine.web import write_drec

K = 10
Events = list[tuple[str, str]]


def questions(bundle: Bundle) -> tuple[list[Events], list[str]]:
    """Return the events of every user but the last, and the item of the last."""
    history, ids, types = bundle.history, bundle.catalogue.ids, bundle.manifest.event_types
    if history is None:
        raise SystemExit("the bundle has no histories")
    events, last = [], []
    for user in range(len(history.users)):
        start, stop = history.offsets[user], history.offsets[user + 1]
        pairs = zip(history.items[start:stop], history.events[start:stop], strict=True)
        *before, (target, _) = [(ids[item], types[event]) for item, event in pairs]
        events.append(before)
        last.append(target)
    return events, last


def in_python(path: Path, users: list[Events]) -> list[list[str]]:
    recommender = load(path)
    for user, events in enumerate(users):
        recommender.forget(str(user), history=True)
        recommender.update(
            [{"user_id": user, "item_id": item, "event_type": event} for item, event in events]
        )
    return [
        [answer.item_id for answer in recommender.recommend(user, k=K)]
        for user in range(len(users))
    ]


def in_node(file: Path, users: list[Events]) -> list[list[str]]:
    asked, answered = file.with_name("users.json"), file.with_name("lists.json")
    asked.write_text(json.dumps(users))
    program = Path(__file__).with_name("web.mjs")
    subprocess.run(["node", str(program), str(file), str(asked), str(answered)], check=True)
    lists: list[list[str]] = json.loads(answered.read_text())
    return lists


def ndcg(lists: list[list[str]], last: list[str]) -> float:
    gains = [
        1 / np.log2(2 + found.index(item)) if item in found else 0.0
        for found, item in zip(lists, last, strict=True)
    ]
    return float(np.mean(gains))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("runs/ml-100k/bundle"))
    folder = parser.parse_args().bundle
    bundle = read_bundle(folder)
    users, last = questions(bundle)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "student.drec"
        rounding = write_drec(bundle, file)
        print(f"{file.stat().st_size:,} bytes; {rounding}")
        lists = {
            "bundle": in_python(folder, users),
            "file": in_python(file, users),
            "file in Node": in_node(file, users),
        }
    for name, found in lists.items():
        print(f"{name:14} NDCG@{K} {ndcg(found, last):.4f} ({len(users)} users)")
    same = np.mean([a == b for a, b in zip(lists["file"], lists["file in Node"], strict=True)])
    print(f"lists that are the same in Python and in Node: {same:.1%}")


if __name__ == "__main__":
    main()
