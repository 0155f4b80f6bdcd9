"""Messages of a topic of Kafka, shared by the consumers of a group. Install with
`distilrec[kafka]`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult

from distilrec.consume.config import ConsumeConfig
from distilrec.consume.messages import Message, stable_id
from distilrec.errors import (
    ConfigError,
    FileMissingError,
    SourceUnavailableError,
    first_line,
    missing_extra,
)

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_TIMEOUT = 10.0  # seconds for one question to the brokers
_SHORT = 1.0  # seconds for one that may stay without an answer
_PREFETCHED_KIB = 16_384
_OURS = frozenset(
    {
        "auto.offset.reset",
        "bootstrap.servers",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.partition.eof",
        "group.id",
        "metadata.broker.list",
    }
)


class KafkaTopic:
    """See `distilrec.consume.source.Source`. An offset is committed after the event is stored."""

    def __init__(self, address: SplitResult, config: ConsumeConfig, password: str | None) -> None:
        try:
            import confluent_kafka
        except ModuleNotFoundError:
            raise missing_extra("confluent_kafka", "kafka") from None
        self._kafka, self._password = confluent_kafka, password
        self._topic = address.path.strip("/")
        self.where = f"kafka://{address.netloc}/{self._topic}"
        if not _TOPIC.fullmatch(self._topic) or "@" in address.netloc:
            raise ConfigError(
                "the address of a topic names no topic, or a user",
                fix="write kafka://HOST:PORT/TOPIC; a user is an option of the client "
                "(sasl.username, in the file of --kafka-options)",
                parameter="source",
            )
        self.expired = 0
        self._held: list[Any] = []  # read while nothing was asked for
        self._next: dict[int, int] = {}  # by partition: the offset to commit
        self._ended: set[int] = set()  # partitions whose end was reached
        self._assigned: set[int] | None = None  # None until the group has assigned some
        self._paused = False
        self._said = ""  # what the client has said last about the brokers
        self._consumer = self._connected(address.netloc, config)

    def _connected(self, brokers: str, config: ConsumeConfig) -> Any:
        options = {
            "queued.max.messages.kbytes": _PREFETCHED_KIB,
            "allow.auto.create.topics": False,
            "log_level": 0,
            **_options(config.kafka_options),
            "bootstrap.servers": brokers,
            "group.id": config.group,
            "auto.offset.reset": "earliest" if config.begin == "oldest" else "latest",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "error_cb": self._hear,
        }
        if self._password is not None:
            options["sasl.password"] = self._password
        try:
            consumer = self._kafka.Consumer(options)
        except (self._kafka.KafkaException, ValueError, TypeError) as problem:
            raise ConfigError(
                f"the Kafka client refuses its options: {self._clean(problem)}",
                fix="correct the file of --kafka-options",
                parameter="kafka_options",
            ) from None
        try:
            topics = consumer.list_topics(self._topic, timeout=_TIMEOUT).topics
            if (said := topics[self._topic].error) is not None:
                unknown = self._kafka.KafkaError.UNKNOWN_TOPIC_OR_PART
                if said.code() in {unknown, self._kafka.KafkaError._UNKNOWN_TOPIC}:
                    raise ConfigError(
                        f"{self.where}: there is no such topic",
                        fix="make the topic, or correct its name",
                        parameter="source",
                    )
                raise self._away(said.str())
            consumer.subscribe(
                [self._topic], on_assign=self._gain, on_revoke=self._lose, on_lost=self._lose
            )
        except self._kafka.KafkaException as problem:
            consumer.close()
            raise self._away(self._said or self._clean(problem)) from None
        except BaseException:
            consumer.close()
            raise
        return consumer

    def poll(self, count: int, seconds: float) -> Sequence[Message]:
        if self._paused:
            self._consumer.resume(self._consumer.assignment())
            self._paused = False
        taken, self._held = self._held[:count], self._held[count:]
        if not taken:
            taken = self._fetched(count, seconds)
        for one in taken:
            self._next[one.partition()] = one.offset() + 1
        return [_message(one) for one in taken]

    def _fetched(self, count: int, seconds: float) -> list[Any]:
        """Return messages, and note the ends of partitions and who has which."""
        try:
            found = self._consumer.consume(count, seconds)
        except (self._kafka.KafkaException, RuntimeError) as problem:
            raise self._away(self._clean(problem)) from None
        messages, said = [], None
        for one in found:
            if one.error() is None:
                self._ended.discard(one.partition())
                messages.append(one)
            elif one.error().code() == self._kafka.KafkaError._PARTITION_EOF:
                self._ended.add(one.partition())
            else:
                said = one.error().str()
        if said is not None:
            self._held += messages
            raise self._away(said)
        # Others read again what was read before they got a partition.
        return [one for one in messages if one.partition() in (self._assigned or ())]

    def commit(self) -> None:
        if not self._next:
            return
        places = [
            self._kafka.TopicPartition(self._topic, partition, offset)
            for partition, offset in self._next.items()
        ]
        try:
            answers = self._consumer.commit(offsets=places, asynchronous=False)
        except self._kafka.KafkaException as problem:
            self._forgive(problem.args[0])
            answers = []
        for place in answers:
            if place.error is not None:
                self._forgive(place.error)
        self._next.clear()

    def _forgive(self, problem: Any) -> None:
        """Pass over a refusal that says that others have taken over: they read again what was not
        committed, and what is stored already counts once. Raises SourceUnavailableError for others.
        """
        kinds = self._kafka.KafkaError
        if problem.code() not in {
            kinds.ILLEGAL_GENERATION,
            kinds.REBALANCE_IN_PROGRESS,
            kinds.UNKNOWN_MEMBER_ID,
            kinds._NO_OFFSET,
        }:
            raise self._away(problem.str())

    def rest(self) -> None:
        with suppress(self._kafka.KafkaException):
            if places := self._consumer.assignment():
                self._consumer.pause(places)
                self._paused = True
        with suppress(SourceUnavailableError):
            self._held += self._fetched(1, 0.0)

    @property
    def at_end(self) -> bool:
        return not self._held and self._assigned is not None and self._assigned <= self._ended

    def lag(self) -> float:
        try:
            places = self._consumer.assignment()
            read = {place.partition: place.offset for place in self._consumer.position(places)}
            stored = self._consumer.committed(places, timeout=_SHORT) if places else []
            waiting = 0
            for place in stored:
                low, high = self._consumer.get_watermark_offsets(place, timeout=_SHORT)
                waiting += high - max(read[place.partition], place.offset, low)
        except (self._kafka.KafkaException, TypeError):
            return math.nan
        return waiting

    def close(self) -> None:
        with suppress(self._kafka.KafkaException, RuntimeError):
            self._consumer.close()

    def _gain(self, consumer: Any, places: Sequence[Any]) -> None:
        """Count the messages that left the topic after the group had last read."""
        self._assigned = (self._assigned or set()) | {place.partition for place in places}
        with suppress(self._kafka.KafkaException, TypeError):
            for place in consumer.committed(list(places), timeout=_TIMEOUT):
                low, _ = consumer.get_watermark_offsets(place, timeout=_TIMEOUT)
                self.expired += max(low - place.offset, 0) if place.offset >= 0 else 0

    def _lose(self, consumer: Any, places: Sequence[Any]) -> None:
        """Forget what was read from partitions that others read from now on, from what was last
        committed.
        """
        lost = {place.partition for place in places}
        # None: an empty set would say that others have all partitions
        self._assigned = ((self._assigned or set()) - lost) or None
        self._ended -= lost
        self._held = [one for one in self._held if one.partition() not in lost]
        for partition in lost:
            self._next.pop(partition, None)

    def _hear(self, problem: Any) -> None:
        self._said = self._without_password(problem.str())

    def _away(self, said: str) -> SourceUnavailableError:
        return SourceUnavailableError(
            f"{self.where}: {self._without_password(said)}",
            fix="check that the brokers run, their addresses, and user and password where they "
            "want some",
            parameter="source",
        )

    def _clean(self, problem: Exception) -> str:
        inner = problem.args[0] if problem.args else None
        said = inner.str() if isinstance(inner, self._kafka.KafkaError) else first_line(problem)
        return self._without_password(said)

    def _without_password(self, said: str) -> str:
        return said.replace(self._password, "***") if self._password else said


def _message(one: Any) -> Message:
    place = one.topic(), one.partition(), one.offset()
    kind, milliseconds = one.timestamp()
    time = milliseconds / 1_000 if kind else None
    # A topic that was deleted and made again counts from 0 again: the time tells the two apart.
    return Message("/".join(map(str, place)), stable_id("kafka", *place, milliseconds), time,
                   one.value())  # fmt: skip


def _options(path: str | None) -> dict[str, str]:
    """Return the options of a file of the format of Kafka's clients. Raises ConfigError,
    FileMissingError.
    """
    if path is None:
        return {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise FileMissingError(
            f"the file of options {path} cannot be read: {first_line(problem)}",
            fix="give a file with one `name = value` on a line",
            file=path,
        ) from None
    options = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, sign, value = line.partition("=")
        name = name.strip()
        if not sign or not name or name in _OURS:
            raise ConfigError(
                f"{path}, line {number}: "
                + (f"{name} is not yours to set" if name in _OURS else "no `name = value`"),
                fix="leave the line out"
                if name in _OURS
                else "write one `name = value` on a line, such as security.protocol = SASL_SSL",
                file=path,
                line=number,
            )
        options[name] = value.strip()
    return options
