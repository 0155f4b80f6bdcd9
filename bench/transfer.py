"""What a teacher from one domain gives a student in another.

    python bench/transfer.py [--seeds 3] [--folder runs/transfer] [--only PAIR ...]

Pairs: `books-films` and `films-books`, Amazon, by the people who are in both; `grocery-produce`,
two departments of Complete Journey, by households; `ml-1m-ml-100k`, the films of two MovieLens data
sets by their titles, whose people are others. For each pair up to four students on the same log of
the target, with the same split:

- no transfer: labels of a linear teacher that knows the target domain alone;
- labels: those of a mixture of that teacher and a linear teacher of both domains, the share chosen
  on validation;
- features (same people): labels as without transfer, and the student knows 16 factors of what a
  user did in the source;
- labels and features: both.

A fifth of the people whom both domains share have no training rows in the target: cold users, asked
for their first items there. Where the people are others, held-out items with at most 10 training
rows in the target are looked at instead: rare items. The Amazon data have no time, their order is
random. Nothing held out in the target is in any training; what households did in the source lies
before all that they did in the target. Test part, NDCG@10, paired by user.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

from distilrec import Feature, Schema, prepare_dataset
from distilrec.data.cleaning import Cleaning
from distilrec.data.dataset import Dataset, Histories
from distilrec.distill.distillation import DistillationConfig, distill_model
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import questions, rank
from distilrec.measure.statistics import bootstrap, paired_difference
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.sequence import TorchScorer
from distilrec.teachers.external import function_teacher
from distilrec.teachers.item_weights import DenseWeights, origin_of
from distilrec.teachers.linear import LinearConfig, LinearTeacher, fit_linear
from distilrec.teachers.teacher import Teacher
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import load_model, save_model
from distilrec.training.validation import validation_ndcg

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
RESULTS = Path(__file__).parent / "results"
FEATURE = (Feature("source", "vector"),)
FACTORS = 16
TRAINING = TrainingConfig(epochs=60, patience=15, learning_rate=4e-3)
FEW = 10  # training rows of a rare item
SHARES = (0.0, 0.1, 0.2, 0.4, 0.8)  # of the source in the scores, chosen on validation
WAYS = ("no transfer", "labels", "features", "labels and features")
PAIRS = ("books-films", "films-books", "ml-1m-ml-100k", "grocery-produce")
Scores = Callable[[Histories], NDArray[np.float32]]


@dataclass(frozen=True)
class Pair:
    """source, target: logs of `user_id` and `item_id` in order, `timestamp` where there is one; ids
    that are in both mean the same person or thing. same_people: the source tells of the people of
    the target; otherwise of its items.
    """

    name: str
    source: pl.DataFrame
    target: pl.DataFrame
    same_people: bool
    linear: LinearConfig

    @property
    def ways(self) -> tuple[str, ...]:
        return WAYS if self.same_people else WAYS[:2]


def amazon(domain: str) -> pl.DataFrame:
    """Who liked what, once each, in random order."""
    path = SHARED / "amazon-books-movies-cdr" / f"Amazon-{domain}-Dense.inter"
    table = pl.read_csv(path, separator="\t", infer_schema=False).select(
        "user_id", pl.format(domain + " {}", "item_id")
    )
    table = table.rename({table.columns[1]: "item_id"})
    return table.unique(maintain_order=True).sample(fraction=1.0, shuffle=True, seed=0)


def movielens_100k() -> pl.DataFrame:
    """Ratings in the order of time; films by title and year."""
    log = pl.read_csv(SHARED / "ml-100k" / "ml-100k.inter", separator="\t")
    films = pl.read_csv(
        SHARED / "ml-100k" / "ml-100k.item", separator="\t", infer_schema=False, quote_char=None
    )
    title = _film(pl.col("movie_title:token_seq"), pl.col("release_year:token"))
    films = films.select(item=pl.col("item_id:token").cast(pl.Int64), item_id=title)
    log = log.join(
        films, left_on="item_id:token", right_on="item", how="left", maintain_order="left"
    )
    log = log.select(
        user_id=pl.format("100k {}", "user_id:token"),
        item_id="item_id",
        timestamp="timestamp:float",
    )
    # A few films are there under two numbers.
    return log.unique(["user_id", "item_id"], keep="first", maintain_order=True)


def movielens_1m() -> pl.DataFrame:
    """Return the same, of MovieLens 1M."""
    columns = ["user", "item", "rating", "time"]
    lines = pl.read_csv(
        (SHARED / "ml-1m" / "ratings.dat").read_text().replace("::", "\t").encode(),
        separator="\t", has_header=False, new_columns=columns,
    )  # fmt: skip
    text = (SHARED / "ml-1m" / "movies.dat").read_text(encoding="latin-1")
    films = pl.DataFrame({"line": text.splitlines()}).select(
        item=pl.col("line").str.split("::").list.get(0).cast(pl.Int64),
        title=pl.col("line").str.split("::").list.get(1),
    )
    title = _film(
        pl.col("title").str.replace(r" \(\d{4}\)$", ""),
        pl.col("title").str.extract(r"\((\d{4})\)$"),
    )
    joined = lines.join(
        films.select("item", item_id=title), on="item", how="left", maintain_order="left"
    )
    return joined.select(
        user_id=pl.format("1m {}", "user"),
        item_id="item_id",
        timestamp=pl.col("time").cast(pl.Float64),
    )


def _film(title: pl.Expr, year: pl.Expr) -> pl.Expr:
    """Return the name of a film in both data sets.

    It holds the letters and digits of its title in lower case, without `The`, and its year.
    """
    words = (
        title.str.to_lowercase()
        .str.replace_all(r"\b(the|a|an)\b", "")
        .str.replace_all(r"[^a-z0-9]+", "")
    )
    return pl.concat_str(words, year.fill_null(""), separator=" ")


def complete_journey(department: str, first_half: bool) -> pl.DataFrame:
    """Return what households bought of a department in weeks 1 to 26, or from week 27 on.

    Kept is the first time of each product that was bought 20 times or more.
    """
    folder = SHARED / "complete-journey"
    products = pl.scan_parquet(folder / "products.parquet").filter(
        pl.col("department") == department
    )
    bought = pl.scan_parquet(folder / "transactions.parquet").join(
        products, on="product_id", how="semi"
    )
    bought = bought.filter((pl.col("week") <= 26) == first_half, pl.len().over("product_id") >= 20)
    bought = bought.sort("transaction_timestamp", maintain_order=True).unique(
        ["household_id", "product_id"], keep="first", maintain_order=True
    )
    time = pl.col("transaction_timestamp").dt.epoch("s").cast(pl.Float64)
    return bought.select(
        user_id=pl.col("household_id").cast(pl.String),
        item_id=pl.col("product_id").cast(pl.String),
        timestamp=time,
    ).collect()


def read(name: str) -> Pair:
    match name:
        case "grocery-produce":
            source, target = complete_journey("GROCERY", True), complete_journey("PRODUCE", False)
            return Pair(name, source, target, True, LinearConfig(ridge=300.0, decay=1.0))
        case "books-films":
            return Pair(
                name, amazon("Books"), amazon("Movies"), True, LinearConfig(ridge=100.0, decay=1.0)
            )
        case "films-books":
            return Pair(
                name, amazon("Movies"), amazon("Books"), True, LinearConfig(ridge=100.0, decay=1.0)
            )
        case _:
            return Pair(name, movielens_1m(), movielens_100k(), False, LinearConfig())


def prepared(pair: Pair, features: bool) -> tuple[Dataset, list[str]]:
    """Return the target, and its cold users, who are unknown there: a fifth of the people that
    both domains share.

    features: what a person did in the source becomes a feature.
    """
    cold: list[str] = []
    if pair.same_people:
        both = sorted(set(pair.target["user_id"]) & set(pair.source["user_id"]))
        cold = np.random.default_rng(0).choice(both, len(both) // 5, replace=False).tolist()
    log = pair.target
    if "timestamp" in log.columns:
        log = log.sort("timestamp", maintain_order=True)
    place = pl.int_range(pl.len()).over("user_id")
    log = log.filter(~pl.col("user_id").is_in(cold) | (place < 3))
    cleaning = Cleaning(min_user_events=3, min_item_events=3)
    # Rows without times are in a random order already
    prepare = partial(prepare_dataset, log, cleaning=cleaning, order="time")
    schema = Schema(timestamp="timestamp" if "timestamp" in log.columns else None)
    if not features:
        return without_training(prepare(schema), cold), cold
    users = factors(pair.source)
    schema = msgspec.structs.replace(schema, user_key="user_id", user_features=FEATURE)
    return without_training(prepare(schema, users=users), cold), cold


def factors(log: pl.DataFrame) -> pl.DataFrame:
    """Each user of a log as a vector: the left factors of users x items, scaled by both degrees, of
    length 1 on average.
    """
    users, items = (log[name].unique(maintain_order=True) for name in ("user_id", "item_id"))
    rows, columns = (
        log[name].replace_strict(ids, np.arange(len(ids)), return_dtype=pl.Int64).to_numpy()
        for name, ids in (("user_id", users), ("item_id", items))
    )
    whole = csr_matrix((np.ones(len(rows)), (rows, columns)))
    degrees = [
        np.sqrt(np.asarray(whole.sum(axis))).reshape(shape)
        for axis, shape in ((1, (-1, 1)), (0, (1, -1)))
    ]
    scaled = csr_matrix(csr_matrix(whole.multiply(1 / degrees[0])).multiply(1 / degrees[1]))
    left = svds(scaled, k=FACTORS, v0=np.ones(min(scaled.shape)))[0]
    return pl.DataFrame(
        {"user_id": users, "source": (left / np.sqrt((left**2).sum(1).mean())).tolist()}
    )


def without_training(data: Dataset, users: list[str]) -> Dataset:
    """Return the data set without the training rows of some users.

    Their validation and test rows both become test rows.
    """
    cold = np.isin(data.info.user_ids, users)
    kept = ~(np.repeat(cold, np.diff(data.offsets)) & data.is_training())
    before = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    offsets, train_end, validation_end = (
        before[data.offsets],
        before[data.train_end],
        before[data.validation_end],
    )
    return replace(
        data,
        offsets=offsets,
        train_end=train_end,
        validation_end=np.where(cold, train_end, validation_end),
        items=data.items[kept],
        events=data.events[kept],
        times=data.times[kept],
    )


def of_target(data: Dataset, alone: LinearTeacher) -> Scores:
    """Return the scores of the target's teacher, with popularity for users without a history."""
    popular = 1e-4 * np.log(data.popularity()[: data.info.warm_items]).astype(np.float32)
    return lambda histories: alone.scores(histories)[:, : data.info.warm_items] + popular


def of_both_domains(pair: Pair, data: Dataset, of_target: Scores) -> tuple[Scores, float]:
    """Scores of the target's teacher and a share of what the source says, and the share that is
    best on validation.

    The same people: the rows of a linear teacher of both domains at the user's source items are
    added. The same items: what a linear teacher of the people of both says takes the share's place
    in the mean.
    """
    names, training = data.info.item_ids, data.training_rows()
    owners = [data.info.user_ids[user] for user in data.user_rows()[training]]
    own = pl.DataFrame(
        {"user_id": owners, "item_id": [names[item] for item in data.items[training]]}
    )
    # Other people stay in the order of time, as those of the target are.
    source = pair.source if pair.same_people else pair.source.sort("timestamp", maintain_order=True)
    rows = pl.concat([own, source.select("user_id", "item_id")])
    if pair.same_people:
        rows = rows.sample(fraction=1.0, shuffle=True, seed=1)
    cleaning = Cleaning(min_item_events=5)
    everyone = prepare_dataset(rows, Schema(), cleaning=cleaning, order="time")
    both = fit_linear(pair.linear, everyone, 0)
    places = {item: n for n, item in enumerate(everyone.info.item_ids[: everyone.info.warm_items])}
    column = np.array([places.get(item, -1) for item in names[: data.info.warm_items]])

    if pair.same_people:
        past: dict[str, list[int]] = {}
        for user, item in pair.source.select("user_id", "item_id").iter_rows():
            if item in places:
                past.setdefault(user, []).append(places[item])
        in_target = np.zeros((data.users, len(column)), np.float32)
        for user, name in enumerate(data.info.user_ids):
            if name in past:
                said = both.weights[past[name]].sum(0)
                in_target[user] = np.where(column >= 0, said[column], 0.0)

        def with_share(share: float) -> Scores:
            return lambda histories: of_target(histories) + share * in_target[histories.users]

    else:
        weights = np.where(
            (column[:, None] >= 0) & (column >= 0), both.weights[column[:, None], column], 0.0
        )
        dense, origin = DenseWeights(weights.astype(np.float32)), origin_of(pair.linear, data, 0.0)
        of_both = LinearTeacher(pair.linear, dense, origin, data)

        def with_share(share: float) -> Scores:
            return lambda histories: (
                (1 - share) * of_target(histories)
                + share * of_both.scores(histories)[:, : len(column)]
            )

    validated = {
        share: validation_ndcg(
            function_teacher(with_share(share), data, identity=f"share {share}"), data
        )
        for share in SHARES
    }
    print(f"{pair.name}: validation by share of the source {validated}", flush=True)
    best = max(SHARES, key=lambda share: validated[share])
    return with_share(best), best


class Part(NamedTuple):
    """A part of the test users for which transfer matters most."""

    name: str
    users: NDArray[np.bool_]


def measure(pair: Pair, folder: Path, seeds: int) -> tuple[list[str], list[dict[str, object]]]:
    """Return the table of one pair, and its figures."""
    plain, cold_ids = prepared(pair, False)
    with_features = prepared(pair, True)[0] if pair.same_people else plain
    data = {way: with_features if "features" in way else plain for way in pair.ways}
    alone = of_target(plain, fit_linear(pair.linear, plain, 0))
    mixed, share = of_both_domains(pair, plain, alone)
    values: dict[str, NDArray[np.float64]] = {}
    for way in pair.ways:
        scores, name = (mixed, f"{share}") if "labels" in way else (alone, "alone")
        teacher = function_teacher(scores, data[way], identity=f"{pair.name} {name}")
        values |= _qualities(pair, way, teacher, data[way], folder, seeds)
    part = _part(pair, plain, cold_ids)
    common = len(set(plain.info.item_ids) & set(pair.source["item_id"]))
    lines = [
        f"{pair.name}: {len(part.users):,} test users, {int(part.users.sum())} with {part.name}, "
        f"{plain.catalogue_size:,} items "
        f"({common:,} known in the source), {seeds} seeds; share of the source in the teacher "
        f"{share:g}",
        "",
        f"| model | all users | {part.name} | gain over no transfer, all | gain, {part.name} |",
        "|---|---|---|---|---|",
    ]
    records = []
    for name in values:
        row, record = _row(pair, name, values, part)
        lines.append(row)
        records.append(record)
    return [*lines, ""], records


def _part(pair: Pair, plain: Dataset, cold_ids: list[str]) -> Part:
    """Return the cold users where people are the same, the users of rare items otherwise."""
    test = questions(plain, "test")
    if pair.same_people:
        users = [plain.info.user_ids[user] for user in test.histories.users]
        return Part("cold users", np.isin(users, cold_ids))
    rare = np.flatnonzero(plain.popularity() <= FEW)
    return Part("rare items", np.isin(test.targets[test.offsets[:-1]], rare))


def _qualities(
    pair: Pair, way: str, teacher: Teacher, data: Dataset, folder: Path, seeds: int
) -> dict[str, NDArray[np.float64]]:
    """Return NDCG@10 of a teacher and of its students, by seed and test user."""
    kept = folder / pair.name / way.replace(" ", "-")
    labels = extract_labels(teacher, data, kept / "labels", LabelConfig(), seed=0)
    test = questions(data, "test")
    of_teacher = ndcg(rank(teacher, test), 10)[None]
    students = []
    for seed in range(seeds):
        student = kept / f"student-{seed}"
        if not (student / "model.json").is_file():
            config, how = RecurrentConfig(dim=64), DistillationConfig(0.8)
            save_model(distill_model(config, data, labels, TRAINING, how, seed=seed), student)
        model = load_model(student, data).model
        students.append(ndcg(rank(TorchScorer(model), test), 10))
        print(f"{pair.name}, {way}, seed {seed}: {students[-1].mean():.4f}", flush=True)
    return {f"teacher, {way}": of_teacher, f"student, {way}": np.stack(students)}


def _row(
    pair: Pair, name: str, values: dict[str, NDArray[np.float64]], part: Part
) -> tuple[str, dict[str, object]]:
    """Return the row of one model, and its figures, beside those of the same without transfer."""
    role, way = name.split(", ")
    found, base = values[name], values[f"{role}, {WAYS[0]}"]
    gains = [
        paired_difference("ndcg@10", way, found[:, users], WAYS[0], base[:, users]).interval
        for users in (np.ones(len(part.users), bool), part.users)
    ]
    shown = [
        "" if way == WAYS[0] else f"{g.mean:+.4f} [{g.low:+.4f}, {g.high:+.4f}]" for g in gains
    ]
    in_part = found[:, part.users]
    row = f"| {name} | {bootstrap(found)} | {bootstrap(in_part)} | {shown[0]} | {shown[1]} |"
    return row, {
        "pair": pair.name,
        "model": name,
        "ndcg_by_seed": found.mean(1).tolist(),
        "slice": part.name,
        "slice_ndcg_by_seed": in_part.mean(1).tolist(),
        "gain": [g.mean for g in gains],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--only", nargs="+", choices=PAIRS, default=PAIRS)
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for name in arguments.only:
        lines, records = measure(read(name), arguments.folder, arguments.seeds)
        line = json.dumps({"bench": "transfer", "rows": records})
        print("\n".join(lines) + "\n" + line, flush=True)
        (RESULTS / f"transfer-{name}.md").write_text("\n".join(lines))
        (RESULTS / f"transfer-{name}.json").write_text(line + "\n")


if __name__ == "__main__":
    main()
