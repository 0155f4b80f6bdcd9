"""What became of answers: a page that shows lists, reports what people see and click, and asks how
often they do.

    distilrec serve --bundle runs/ml-100k/bundle --store sqlite:///service.db &
    python examples/outcomes.py http://localhost:8000
"""

from __future__ import annotations

import json
import random
import sys
import urllib.request

USERS = [str(number) for number in range(1, 41)]


def ask(url: str, path: str, body: dict | None = None) -> dict:
    """Return the answer of the service, to a POST where there is a body."""
    content = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url + path, content, headers)  # noqa: S310 - the reader's url
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        return json.load(answer)


def visit(url: str, user: str, placement: str, chance: random.Random) -> None:
    """Show a list to a user, who looks at some items and may click one and buy it."""
    answer = ask(url, "/v1/recommend", {"user_id": user, "k": 5, "placement": placement})
    named = {"user_id": user, "recommendation_id": answer["recommendation_id"]}
    seen = answer["items"][: chance.randint(2, 5)]
    events = [
        {**named, "item_id": item["item_id"], "event_type": "impression", "position": item["rank"]}
        for item in seen
    ]
    for item in seen:
        if chance.random() < 0.3 / item["rank"]:  # what stands first is clicked most
            events.append({**named, "item_id": item["item_id"], "event_type": "click"})
            if chance.random() < 0.5:
                sale = {"event_type": "buy", "value": 9.5, "event_id": f"order-{chance.random()}"}
                events.append({**named, "item_id": item["item_id"], **sale})
            break
    ask(url, "/v1/events", {"events": events})


def main() -> None:
    """Visit two places of a shop, and print what became of the lists there."""
    url, chance = sys.argv[1], random.Random(7)  # noqa: S311 - a made-up visitor
    for user in USERS:
        for placement in ("home", "cart"):
            visit(url, user, placement, chance)
    for group in ask(url, "/v1/outcomes?by=placement")["groups"]:
        rate, value = group["click_rate"], group["value_per_answer"]
        print(
            f"{group['placement']}: {group['answers']} lists, {group['clicked']} clicked "
            f"({rate['mean']:.1%}, 95% interval {rate['low']:.1%} to {rate['high']:.1%}), "
            f"{value['mean']:.2f} each"
        )
    for group in ask(url, "/v1/outcomes?by=position")["groups"]:
        rate = group["impression_click_rate"]
        print(f"position {group['position']}: {rate['mean']:.1%} of {group['impressions']} clicked")


if __name__ == "__main__":
    main()
