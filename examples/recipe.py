"""What the recipes have in common: tables from the source, a run, and answers to a few users.

    python examples/DOMAIN/recipe.py [--source FOLDER] [--run FOLDER] [--tables-only]

The tables go to examples/DOMAIN/tables, where recipe.toml looks for them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl

from distilrec import load, runs
from distilrec.report import table, verdict
from distilrec.runs import read_config

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"


def main(
    folder: Path, source: str = "", tables: Callable[[Path], dict[str, pl.DataFrame]] | None = None
) -> None:
    """Make the tables of a recipe from the folder `source`, train, compare, and print answers
    with their reasons.

    tables: none where the configuration names a public data set.
    """
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source", type=Path, default=SHARED / source, help="folder of the original files"
    )
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "domains" / folder.name)
    parser.add_argument(
        "--tables-only", action="store_true", help="stop after the tables, for bench/quality.py"
    )
    arguments = parser.parse_args()
    if tables is not None and not arguments.source.is_dir():
        sys.exit(
            f"error: {arguments.source} is not there\n  how to fix: give the folder of {source} "
            "with --source"
        )
    (folder / "tables").mkdir(exist_ok=True)
    for name, made in ({} if tables is None else tables(arguments.source)).items():
        made.write_parquet(folder / "tables" / f"{name}.parquet")
        print(f"{name}: {made.height:,} rows, {', '.join(made.columns)}", flush=True)
    if arguments.tables_only:
        return
    comparison = runs.run_all(read_config(folder / "recipe.toml"), arguments.run, runs.Lines())
    for row in table(comparison):
        print("  ".join(f"{cell:<22}"[:34] for cell in row))
    print(*verdict(comparison), sep="\n")
    recommender = load(arguments.run / "bundle")
    for user in recommender.some_users(3):
        past = [recommender.title_of_past(item) for item in recommender.past(user, 3)]
        print(f"\nuser {user}, lately: {'; '.join(past)}")
        for item, score in recommender.recommend(user, k=3):
            reasons = [
                recommender.title_of_past(reason.item_id)
                for reason in recommender.explain(user, item, k=2)
            ]
            print(f"  {score:7.3f}  {recommender.title(item)}   because of: {'; '.join(reasons)}")
