"""A dirty shop: Online Retail, invoice lines as a shop keeps them, and what cleaning and declared
checks leave out.

What it shows: returns (negative quantities), lines without a customer, and purchases that repeat.
What it cannot show: features of customers or products (there is a description, and that is all).
"""

import sys
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from recipe import main


def tables(source: Path) -> dict[str, pl.DataFrame]:
    """Return the invoice lines as they are."""
    return {"log": pl.read_parquet(source / "online_retail.parquet")}


if __name__ == "__main__":
    main(Path(__file__).resolve().parent, "online-retail", tables)
