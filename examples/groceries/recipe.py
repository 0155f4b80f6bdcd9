"""Groceries: Ta-Feng, four months of a supermarket; age and area of the customer, class and price
of the product.

What it shows: purchases that sometimes repeat, many customers with few baskets. What it cannot
show: the time of day (only dates are known, so the order within a basket means nothing) and what
happened when nothing was bought.
"""

import sys
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from recipe import main


def tables(source: Path) -> dict[str, pl.DataFrame]:
    """Return the log by day, customers by age and area, products by class and price."""
    bought = pl.read_parquet(source / "ta_feng.parquet")
    price = pl.col("SALES_PRICE").cast(pl.Float64) / pl.col("AMOUNT").cast(pl.Float64).clip(1)
    return {
        "log": bought.select(
            user_id="CUSTOMER_ID",
            item_id="PRODUCT_ID",
            timestamp=pl.col("TRANSACTION_DT").str.to_date("%m/%d/%Y"),
            quantity=pl.col("AMOUNT").cast(pl.Float64),
        ),
        "users": bought.group_by("CUSTOMER_ID", maintain_order=True).agg(
            age=pl.col("AGE_GROUP").first(), area=pl.col("PIN_CODE").first()
        ),
        "items": bought.filter(pl.len().over("PRODUCT_ID") >= _FEWEST)
        .group_by("PRODUCT_ID", maintain_order=True)
        .agg(subclass=pl.col("PRODUCT_SUBCLASS").first(), price=price.median())
        .with_columns(title=pl.format("product {} of class {}", "PRODUCT_ID", "subclass")),
    }


_FEWEST = 20  # purchases of a product


if __name__ == "__main__":
    main(Path(__file__).resolve().parent, "ta-feng", tables)
