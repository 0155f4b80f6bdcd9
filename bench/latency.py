"""Time of one request, one user, one thread, side by side in one run: teacher and student in torch,
the engine, others.

    python bench/latency.py [--run runs/ml-100k]

The teacher is measured through torch as it is, and traced and frozen by TorchScript, for histories
padded to multiples of 32 events; the faster one counts ("best runtime"). Every system gets the same
users with their whole history and gives its ten best unseen items. `implicit` and `rectools` are
measured where they are installed. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import warnings
from collections.abc import Callable
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = "1"
warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402

import distilrec  # noqa: E402
from distilrec.data.dataset import Dataset, Histories, load_dataset  # noqa: E402
from distilrec.engine.recommender import Recommender  # noqa: E402
from distilrec.measure.latency import Latency, measure  # noqa: E402
from distilrec.networks.batches import Batch, prediction_batch  # noqa: E402
from distilrec.networks.sequence import SequenceModel, TorchScorer  # noqa: E402
from distilrec.runs.candidates import engine_latency, torch_latency  # noqa: E402
from distilrec.runs.folder import open_run  # noqa: E402
from distilrec.runs.teachers import open_teacher  # noqa: E402
from distilrec.teachers.build import kind_of  # noqa: E402
from distilrec.teachers.ease import interactions  # noqa: E402
from distilrec.teachers.ensemble import EnsembleTeacher  # noqa: E402
from distilrec.teachers.teacher import ModelTeacher, Teacher  # noqa: E402
from distilrec.training.trained import load_model  # noqa: E402

K = 10
PADDED = 32
ENGINE = "engine: recommend, 10 of all"


def implicit_als(dataset: Dataset) -> Callable[[int], object]:
    import implicit
    from scipy.sparse import csr_matrix

    users, items = interactions(dataset)
    shape = (dataset.users, dataset.catalogue_size)
    matrix = csr_matrix((np.ones(len(users), np.float32), (users, items)), shape=shape)
    model = implicit.als.AlternatingLeastSquares(factors=64, num_threads=1, random_state=0)
    model.fit(matrix, show_progress=False)
    return lambda n: model.recommend(
        n % dataset.info.warm_users, matrix[n % dataset.info.warm_users], N=K
    )


def rectools_ease(dataset: Dataset) -> Callable[[int], object]:
    import pandas as pd
    from rectools import Columns
    from rectools.dataset import Dataset as RecToolsDataset
    from rectools.models import EASEModel

    training = dataset.is_training()
    log = pd.DataFrame(
        {
            Columns.User: dataset.user_rows()[training],
            Columns.Item: dataset.items[training],
            Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(dataset.times[training], unit="s"),
        }
    )
    whole = RecToolsDataset.construct(log)
    model = EASEModel(regularization=300.0)
    model.fit(whole)
    return lambda n: model.recommend(
        np.array([n % dataset.info.warm_users]),
        dataset=whole,
        k=K,
        filter_viewed=True,
        add_rank_col=True,
    )


class Traced:
    """A teacher whose networks run as frozen TorchScript, one graph per padded length; other
    members run as they are.
    """

    def __init__(self, teacher: Teacher, dataset: Dataset) -> None:
        self._dataset = dataset
        ensemble = isinstance(teacher, EnsembleTeacher)
        members = teacher.members if ensemble else (teacher,)
        weights = teacher.weights if ensemble else (1.0,)
        self._members = [(m, w) for m, w in zip(members, weights, strict=True) if w]
        self._graphs: dict[tuple[int, int], torch.jit.ScriptModule] = {}

    def scores(self, histories: Histories) -> np.ndarray:
        total = np.zeros((1, self._dataset.catalogue_size), np.float32)
        for number, (member, weight) in enumerate(self._members):
            scores = (
                self._network(number, member, histories)
                if isinstance(member, ModelTeacher)
                else member.scores(histories)
            )
            total += np.float32(weight) * scores
        return total

    def _network(self, number: int, member: ModelTeacher, histories: Histories) -> np.ndarray:
        model = member.trained.model
        batch = prediction_batch(histories, model.items.catalogue_size, model.max_history)
        last = int((batch.targets[0] == 0).nonzero()[0, 0])
        length = min(-(-batch.items.shape[1] // PADDED) * PADDED, model.max_history)
        extra = length - batch.items.shape[1]
        items = torch.nn.functional.pad(batch.items, (0, extra), value=model.items.catalogue_size)
        events = torch.nn.functional.pad(batch.events, (0, extra))
        inputs = (batch.users, items, events, torch.tensor([last]))
        with torch.inference_mode():
            if (number, length) not in self._graphs:
                traced = torch.jit.trace(OneAnswer(model).eval(), inputs, check_trace=False)
                self._graphs[number, length] = torch.jit.freeze(traced)
            return self._graphs[number, length](*inputs).numpy()


class OneAnswer(torch.nn.Module):
    """The logits at one position of one history."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model
        with torch.inference_mode():
            self.vectors, self.biases = model.items.vectors(), model.items.biases()

    def forward(
        self, users: torch.Tensor, items: torch.Tensor, events: torch.Tensor, last: torch.Tensor
    ) -> torch.Tensor:
        nothing = torch.zeros((1, 0), dtype=torch.int64)
        states = self.model.encode(Batch(users, items, events, items, items, nothing), self.vectors)
        return self.model.score(states[:, last[0]], self.vectors, self.biases)


def measured(
    run: Path, teacher: Teacher, dataset: Dataset, recommender: Recommender
) -> dict[str, Latency]:
    """Return the time of each system, by its name."""
    users = dataset.info.user_ids[: dataset.info.warm_users]
    ten = list(dataset.info.item_ids[:K])
    events = [{"user_id": users[n % len(users)], "item_id": ten[n % K]} for n in range(2_000)]
    student = TorchScorer(load_model(run / "student", dataset).model)
    results = {
        "teacher in torch": torch_latency(teacher, dataset),
        "teacher in TorchScript": torch_latency(Traced(teacher, dataset), dataset),
        "student in torch": torch_latency(student, dataset),
        ENGINE: engine_latency(recommender, dataset),
        "engine: rank 10 given items": measure(
            lambda n: recommender.recommend(users[n % len(users)], ten), 2_000
        ),
        "engine: update by one event": measure(lambda n: recommender.update([events[n]]), 1_900),
    }
    for name, make in (
        ("implicit ALS, 64 factors", implicit_als),
        ("RecTools EASE", rectools_ease),
    ):
        try:
            results[name] = measure(make(dataset), 200)
        except ImportError as missing:
            print(f"{name}: not installed ({missing})")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/ml-100k"))
    run = parser.parse_args().run
    torch.set_num_threads(1)
    dataset = load_dataset(run / "data")
    teacher = open_teacher(open_run(run), dataset)
    results = measured(run, teacher, dataset, distilrec.load(run / "bundle"))
    engine = results[ENGINE].p50
    print(
        f"\n{dataset.info.name}: {dataset.catalogue_size:,} items, "
        f"{dataset.info.warm_users:,} users; microseconds, one thread\n"
    )
    print(f"| {'system':<30} | {'p50':>10} | {'p99':>10} | {'p50 / engine recommend':>22} |")
    print(f"|{'-' * 32}|{'-' * 11}:|{'-' * 11}:|{'-' * 23}:|")
    for name, latency in results.items():
        print(
            f"| {name:<30} | {latency.p50:>10,.1f} | {latency.p99:>10,.1f} | "
            f"{latency.p50 / engine:>22,.1f} |"
        )
    best = min(
        results["teacher in torch"],
        results["teacher in TorchScript"],
        key=lambda latency: latency.p50,
    )
    print(f"\nteacher through its best runtime / engine: {best.p50 / engine:.0f}\n")
    print(
        json.dumps(
            {
                "bench": "latency",
                "dataset": dataset.info.name,
                "machine": platform.processor() or platform.machine(),
                "microseconds": {
                    name: {"p50": value.p50, "p99": value.p99} for name, value in results.items()
                },
                "teacher": kind_of(teacher),
                "teacher_parameters": teacher.cost.parameters,
                "best_teacher_over_engine": best.p50 / engine,
            }
        )
    )


if __name__ == "__main__":
    main()
