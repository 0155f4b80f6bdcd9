"""Films and trust: FilmTrust, ratings of 1,508 people, some of whom say whose taste they trust.

What it shows: whom somebody trusts as features of a user. What it cannot show: order (ratings have
no time, the held-out film is drawn at random) and titles (films are numbers).
"""

import sys
from functools import partial
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from recipe import main


def tables(source: Path) -> dict[str, pl.DataFrame]:
    """Ratings, and the people whom somebody trusts."""
    read = partial(pl.read_csv, separator=" ", has_header=False)
    ratings = read(source / "ratings.txt", new_columns=["user_id", "item_id", "rating"])
    trust = read(source / "trust.txt", new_columns=["user_id", "trusted", "value"])
    return {
        "log": ratings,
        "users": trust.group_by("user_id", maintain_order=True).agg(
            trusts=pl.col("trusted").cast(pl.String)
        ),
    }


if __name__ == "__main__":
    main(Path(__file__).resolve().parent, "filmtrust", tables)
