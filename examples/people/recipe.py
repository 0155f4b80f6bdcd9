"""People to follow: Last.fm 2K, who is a friend of whom; the items are people.

What it shows: the same tool recommends people. Both sides are described by the artists that
somebody listens to most, so a newcomer without friends gets neighbours in taste. What it cannot
show: direction (friendship here is mutual) and time: the held-out friend is drawn at random.
"""

import sys
from functools import partial
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from recipe import main


def tables(source: Path) -> dict[str, pl.DataFrame]:
    """Friendships, and for both sides the ten artists somebody listens to most."""
    read = partial(pl.read_csv, separator="\t", encoding="utf8-lossy", quote_char=None)
    names = read(source / "artists.dat").select(artistID="id", name="name")
    plays = (
        read(source / "user_artists.dat")
        .join(names, on="artistID")
        .sort("userID", "weight", descending=[False, True])
    )
    taste = plays.group_by("userID", maintain_order=True).agg(artists=pl.col("name").head(10))
    friends = read(source / "user_friends.dat").filter(pl.len().over("userID") >= _FEWEST)
    listens = pl.format("listens to {}", pl.col("artists").list.head(3).list.join(", "))
    return {
        "log": friends.select("userID", "friendID"),
        "users": taste,
        "items": taste.join(friends.select(userID="friendID").unique(), on="userID").with_columns(
            title=listens
        ),
    }


_FEWEST = 5  # friends of a person who is asked about


if __name__ == "__main__":
    main(Path(__file__).resolve().parent, "lastfm-2k", tables)
