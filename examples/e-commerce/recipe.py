"""E-commerce: Complete Journey, the purchases of 2,469 households in a year of one retailer.

What it shows: age, income and size of the household, type, brand, price and sales volume of the
product, and purchases that repeat and count. What it cannot show: views or carts (only purchases
are known), and new products (one year of one chain). Only products that were bought in 200 baskets
or more take part; the rest is what a two-core machine has no time for.
"""

import sys
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from recipe import main

_FEWEST = 200  # purchases of a product


def tables(source: Path) -> dict[str, pl.DataFrame]:
    """Return the log by basket, households with demographics, and products with mean prices."""
    bought = pl.read_parquet(source / "transactions.parquet")
    bought = bought.filter((pl.col("quantity") > 0) & (pl.len().over("product_id") >= _FEWEST))
    price = bought.group_by("product_id", maintain_order=True).agg(
        price=pl.col("sales_value").sum() / pl.col("quantity").sum().clip(1)
    )
    products = pl.read_parquet(source / "products.parquet").join(
        price, on="product_id", how="right"
    )
    title = pl.concat_str("product_type", "package_size", separator=", ", ignore_nulls=True)
    return {
        "log": bought.select(
            "household_id", "product_id", "quantity", timestamp="transaction_timestamp"
        ),
        "users": pl.read_parquet(source / "demographics.parquet"),
        "items": products.with_columns(title=title, price=pl.col("price").fill_nan(None)),
    }


if __name__ == "__main__":
    main(Path(__file__).resolve().parent, "complete-journey", tables)
