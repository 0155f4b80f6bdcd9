"""News: clicks on Bing News headlines, a sample of 469 people, where nearly every headline is new.

What it shows: items without a single click, ranked by the words of their headline and the entities in it. What it cannot
show: time (only the order of one person's rows is known), and who saw what without a click (only for the same 469 people).
"""

import sys
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from recipe import main


def tables(source: Path) -> dict[str, pl.DataFrame]:
    """Clicks in the order of the file, and all headlines that were shown, clicked or not."""
    columns = ["user_id", "title", "clicked", "entities"]
    parts = [
        pl.read_csv(source / f"raw_{part}.txt", separator="\t", has_header=False, new_columns=columns, quote_char=None)
        for part in ("train", "test")
    ]
    shown = pl.concat(parts).with_columns(item_id=pl.col("title").rank("dense").cast(pl.Int64))
    entity = pl.col("entities").fill_null("").str.split(";").list.eval(pl.element().str.split(":").list.last())
    return {
        "log": shown.filter(pl.col("clicked") == 1).select("user_id", "item_id"),
        "items": shown.unique("item_id", keep="first", maintain_order=True).select("item_id", "title", entities=entity),
    }


if __name__ == "__main__":
    main(Path(__file__).resolve().parent, "news-bing", tables)
