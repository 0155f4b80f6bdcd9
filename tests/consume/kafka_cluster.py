"""Kafka for the tests: librdkafka's own cluster in this process, which any client reaches over TCP."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import confluent_kafka


class Kafka:
    """A cluster of one broker, whose groups begin without the usual wait of three seconds."""

    def __init__(self) -> None:
        package = Path(confluent_kafka.__file__).parent
        (library,) = (package.parent / "confluent_kafka.libs").glob("librdkafka-*.so*")
        self._library = ctypes.CDLL(str(library))
        for name, kind in (
            ("rd_kafka_conf_new", ctypes.c_void_p),
            ("rd_kafka_new", ctypes.c_void_p),
            ("rd_kafka_mock_cluster_new", ctypes.c_void_p),
            ("rd_kafka_mock_cluster_bootstraps", ctypes.c_char_p),
        ):
            getattr(self._library, name).restype = kind
        options, problem = (
            ctypes.c_void_p(self._library.rd_kafka_conf_new()),
            ctypes.create_string_buffer(512),
        )
        self._library.rd_kafka_conf_set(options, b"log_level", b"0", problem, 512)
        self._client = ctypes.c_void_p(self._library.rd_kafka_new(0, options, problem, 512))
        assert self._client, problem.value
        self._cluster = ctypes.c_void_p(self._library.rd_kafka_mock_cluster_new(self._client, 1))
        self.brokers = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        self._library.rd_kafka_mock_group_initial_rebalance_delay_ms(
            self._cluster, ctypes.c_int32(0)
        )

    def __enter__(self) -> Self:
        self._producer = confluent_kafka.Producer(
            {"bootstrap.servers": self.brokers, "log_level": 0}
        )
        return self

    def __exit__(self, *problem: object) -> None:
        del self._producer
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)

    def topic(self, name: str, partitions: int = 2) -> str:
        """Makes a topic, and gives its address."""
        code = self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1)
        assert code == 0
        return f"kafka://{self.brokers}/{name}"

    def send(self, topic: str, values: Iterable[bytes | None]) -> None:
        for place, value in enumerate(values):
            self._producer.produce(topic, value, partition=place % 2)
        assert self._producer.flush(60) == 0

    def set_up(self, up: bool) -> None:
        """Lets the broker answer, or not."""
        name = f"rd_kafka_mock_broker_set_{'up' if up else 'down'}"
        assert getattr(self._library, name)(self._cluster, 1) == 0
