"""Music and friends: Last.fm 2K, whom 1,892 people listened to, with tags of the artists and links
between the people.

What it shows: friends as features of a user, tags as features of an item. What it cannot show:
order. Plays have no time, so the held-out artist is drawn at random and the models learn sets
rather than sequences.
"""

import sys
from functools import partial
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from recipe import main


def tables(source: Path) -> dict[str, pl.DataFrame]:
    """Who listened to whom, the friends of everybody, and the five commonest tags
    of each artist.
    """
    read = partial(pl.read_csv, separator="\t", encoding="utf8-lossy", quote_char=None)
    plays = read(source / "user_artists.dat").filter(pl.len().over("artistID") >= _FEWEST)
    named = read(source / "tags.dat").select("tagID", "tagValue")
    tagged = (
        read(source / "user_taggedartists.dat")
        .join(named, on="tagID")
        .group_by("artistID", "tagValue", maintain_order=True)
        .len()
    )
    tags = (
        tagged.sort("len", "tagValue", descending=True)
        .group_by("artistID", maintain_order=True)
        .agg(tags=pl.col("tagValue").head(5))
    )
    artists = read(source / "artists.dat").select(artistID="id", name="name")
    heard = plays.select("artistID").unique().sort("artistID")
    return {
        "log": plays.select("userID", "artistID"),
        "users": read(source / "user_friends.dat")
        .group_by("userID", maintain_order=True)
        .agg(friends=pl.col("friendID").cast(pl.String)),
        "items": heard.join(artists, on="artistID", how="left").join(
            tags, on="artistID", how="left"
        ),
    }


_FEWEST = 10  # listeners of an artist


if __name__ == "__main__":
    main(Path(__file__).resolve().parent, "lastfm-2k", tables)
