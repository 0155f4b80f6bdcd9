"""Read, store, commit, and again: an event is stored before its message is acknowledged, and its
event id makes what is read twice count once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from distilrec.consume.config import ConsumeConfig
from distilrec.consume.dead_letters import DeadLetters
from distilrec.consume.delivery import Delivery, open_delivery
from distilrec.consume.messages import DeadLetter, EventReader, Message, dead_letter
from distilrec.consume.patience import Patience, Stopped
from distilrec.consume.source import Source, open_source
from distilrec.consume.tally import Tally
from distilrec.errors import DistilrecError
from distilrec.serve.logs import log
from distilrec.serve.schemas import EventBody

_POLL = 0.5  # seconds
_LOG_EVERY = 60.0  # seconds between two lines of the log about progress


def consume(config: ConsumeConfig, stop: threading.Event | None = None) -> Tally:
    """Take events from a source into a service or a store until `stop` is set, or no message is
    left where the configuration says so.

    Messages that hold no event are kept in the file of dead letters, and do not stop the others.
    While source, service or store is away it waits. When `stop` is set, what is in hand is stored
    and committed; what waits for a service that is away is read again the next time.
    Raises ConfigError, FileMissingError, MissingExtraError; SourceUnavailableError and StoreErrors
    where source or store cannot be opened; ServiceError where the service refuses the key.
    """
    stop, tally = stop or threading.Event(), Tally()
    with ExitStack() as opened:
        delivery = open_delivery(config)
        opened.callback(delivery.close)
        source = open_source(config)
        opened.callback(source.close)
        _Consumer(config, source, delivery, stop, tally).run()
    return tally


class _Consumer:
    def __init__(
        self,
        config: ConsumeConfig,
        source: Source,
        delivery: Delivery,
        stop: threading.Event,
        tally: Tally,
    ) -> None:
        self._config, self._source, self._delivery = config, source, delivery
        self._stop, self._tally = stop, tally
        self._reader = EventReader(config)
        self._dead_letters = DeadLetters(Path(config.dead_letters))
        self._patience = Patience(stop, self._rest, self._retried)
        self._next_metrics, self._next_line = 0.0, time.monotonic() + _LOG_EVERY

    def run(self) -> None:
        log("consuming", source=self._source.where, group=self._config.group)
        try:
            self._write()
            while not self._stop.is_set():
                batch = self._patience.until(lambda: self._source.poll(self._config.batch, _POLL))
                if batch:
                    self._handle(batch)
                elif self._config.until_empty and self._source.at_end:
                    break
                self._write_now_and_then()
            self._patience.until(self._source.commit)
        except Stopped:
            log("stopped while waiting: what is not stored yet is read again")
        finally:
            self._write()
        log("ended", messages=self._tally.messages)

    def _handle(self, batch: Sequence[Message]) -> None:
        """Store the events of a batch, keep its dead letters, commit it."""
        events: list[EventBody] = []
        origins: list[Message] = []
        letters: list[DeadLetter] = []
        for message in batch:
            try:
                events.append(self._reader.read(message))
                origins.append(message)
            except DistilrecError as problem:
                letters.append(dead_letter(self._source.where, message, problem))
        done = self._delivery.deliver(events, self._patience)
        for place, refusal in done.refused.items():
            letters.append(dead_letter(self._source.where, origins[place], refusal))
        letters = self._dead_letters.keep(letters)
        tally = self._tally
        tally.messages += len(batch)
        tally.delivered += done.accepted
        tally.duplicates += done.duplicates
        tally.unattributed += done.unattributed
        tally.dead.update(letter.reason for letter in letters)
        self._patience.until(self._source.commit)
        tally.last_commit = time.time()

    def _rest(self) -> None:
        self._source.rest()
        self._write_now_and_then()

    def _retried(self) -> None:
        self._tally.retries += 1

    def _write_now_and_then(self) -> None:
        now = time.monotonic()
        if now >= self._next_metrics:
            self._write()
        if now >= self._next_line:
            self._next_line = now + _LOG_EVERY
            tally = self._tally
            log(
                "consumed",
                messages=tally.messages,
                delivered=tally.delivered,
                duplicates=tally.duplicates,
                dead=tally.dead.total(),
                expired=tally.expired,
                retries=tally.retries,
            )

    def _write(self) -> None:
        self._tally.expired = self._source.expired
        self._next_metrics = time.monotonic() + self._config.metrics_seconds
        if self._config.metrics is not None:
            self._tally.lag = self._source.lag()
            self._tally.write(Path(self._config.metrics))
