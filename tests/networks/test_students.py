"""Every kind of student keeps the contract: torch and the engine answer the same."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
import torch

from distilrec import load
from distilrec.bundle.format import read_bundle, write_manifest
from distilrec.engine.runtimes.kinds import RUNTIMES
from distilrec.errors import BundleVersionError, ConfigError
from distilrec.networks.build import build_model
from distilrec.networks.kinds import STUDENTS
from distilrec.networks.student import StudentSettings, kind_of
from distilrec.targets import EventRole, Targets
from distilrec.testing import StudentContract
from distilrec.testing.students import LONGEST, small_dataset
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import train_model
from tests import small_run


@pytest.mark.slow
class TestRecurrent(StudentContract):
    config = small_run.STUDENTS["recurrent"]


@pytest.mark.slow
class TestRecurrentWithNeighbours(StudentContract):
    config = msgspec.structs.replace(
        small_run.STUDENTS["recurrent"], neighbours=5, neighbour_events=4, repeat_events=0
    )


@pytest.mark.slow
class TestRecurrentToldTheTime(StudentContract):
    config = msgspec.structs.replace(
        small_run.STUDENTS["recurrent"], time=True, timezone="America/New_York"
    )

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, dataset):
        """A student for which the time matters more than after two epochs."""
        config = msgspec.structs.replace(cls.config, max_history=LONGEST + 1)
        return small_run.timed_student(config, dataset, epochs=2)


@pytest.mark.slow
class TestRecurrentWithRepeats(StudentContract):
    config = msgspec.structs.replace(TestRecurrentWithNeighbours.config, repeat_events=7)

    @pytest.fixture(scope="class")
    @classmethod
    def dataset(cls):
        made = small_dataset()
        return replace(made, info=msgspec.structs.replace(made.info, repeats=True))

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, dataset):
        """A student whose repeats matter more than after two epochs."""
        config = msgspec.structs.replace(cls.config, max_history=LONGEST + 1)
        made = train_model(config, dataset, TrainingConfig(epochs=2, batch_size=16), seed=0)
        with torch.no_grad():
            repeats = made.model.neighbours.repeats
            repeats += 1 + torch.rand(repeats.shape, generator=torch.Generator().manual_seed(0))
        return made


@pytest.mark.slow
class TestRecurrentThatKnowsVisits(TestRecurrentToldTheTime):
    config = msgspec.structs.replace(TestRecurrentWithRepeats.config, visit_gap=1800.0)


@pytest.mark.slow
class TestRecurrentToldTheTimeThatKnowsVisits(TestRecurrentThatKnowsVisits):
    config = msgspec.structs.replace(TestRecurrentThatKnowsVisits.config, time=True)


class WithNegativeEvents(StudentContract):
    @pytest.fixture(scope="class")
    @classmethod
    def dataset(cls):
        views = EventRole("view", role="negative")
        return small_dataset(Targets((EventRole("buy", loss_weight=2.0), views)))


@pytest.mark.slow
class TestRecurrentWithNegativeEvents(WithNegativeEvents):
    config = small_run.STUDENTS["recurrent"]


@pytest.mark.slow
class TestRecurrentWithNegativeNeighbours(WithNegativeEvents):
    config = TestRecurrentWithNeighbours.config


@pytest.mark.slow
class TestMlpWithNegativeEvents(WithNegativeEvents):
    config = small_run.STUDENTS["mlp"]


@pytest.mark.slow
class TestSoftTreeWithNegativeEvents(WithNegativeEvents):
    config = small_run.STUDENTS["soft_tree"]


@pytest.mark.slow
class TestMlp(StudentContract):
    config = small_run.STUDENTS["mlp"]


@pytest.mark.slow
class TestSoftTree(StudentContract):
    config = small_run.STUDENTS["soft_tree"]


def test_every_kind_keeps_the_contract():
    contracts = [*StudentContract.__subclasses__(), *WithNegativeEvents.__subclasses__()]
    contracts.remove(WithNegativeEvents)
    tested = {kind_of(contract.config) for contract in contracts}
    assert tested >= set(STUDENTS) == set(RUNTIMES) == set(small_run.STUDENTS)


def test_a_bundle_of_an_unknown_kind_is_refused(bundle):
    manifest = msgspec.structs.replace(read_bundle(bundle).manifest, kind="mystery")
    write_manifest(bundle, manifest)
    with pytest.raises(
        BundleVersionError, match="a student of kind 'mystery'.*recurrent, mlp"
    ) as caught:
        load(bundle)
    assert str(bundle) in str(caught.value)
    assert "upgrade distilrec" in caught.value.fix


def test_settings_of_an_unknown_kind_are_refused(small):
    class MysteryConfig(StudentSettings, frozen=True, tag="mystery"):
        max_history: int = 5

    with pytest.raises(ConfigError, match="'mystery' is not a kind of student") as caught:
        build_model(MysteryConfig(), small, 0)
    assert "recurrent, mlp, soft_tree" in caught.value.fix
