"""A Redis client that follows one hash slot through a Redis Cluster. Needs `distilrec[redis]`.

All keys of a store lie in one slot, so that one node has all of them: as long as the slot stays
there, this is a client of one server. Where the slot is, the nodes say (`CLUSTER SLOTS`, `MOVED`).
While it moves, what one command asks about one key is answered by either node (`ASK`), and what
needs several keys has to wait (`TRYAGAIN`). docs/decisions/redis-cluster.md says why this is not
`redis.RedisCluster`.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError
from redis.retry import Retry

Answer = TypeVar("Answer")

_PATIENCE, _PAUSE = 1.0, 0.05  # seconds; for how long to try again, and how often
_CLUSTER = re.compile(r"(rediss?)\+cluster://([^@/?#]*@)?([^@/?#]+)(?:/0?)?(\?[^#]*)?")
_NODE = re.compile(r"([^\s:,\[\]]+|\[[0-9a-fA-F:.]+\])(?::(\d{1,5}))?")
_AWAY = ClusterDownError, redis.ConnectionError, redis.TimeoutError


class Node(NamedTuple):
    """Where a server of a cluster listens."""

    host: str
    port: int


class ClusterAddress(NamedTuple):
    """The parts of `redis+cluster://USER:PASSWORD@HOST:PORT,HOST:PORT/?OPTION=VALUE`."""

    scheme: str
    user: str
    nodes: tuple[Node, ...]
    options: str

    def of(self, node: Node) -> str:
        """Return the address of one node, as redis-py reads it."""
        host = f"[{node.host}]" if ":" in node.host else node.host
        return f"{self.scheme}://{self.user}{host}:{node.port}/0{self.options}"


def cluster_address(url: str) -> ClusterAddress:
    """Return the parts of the address of a cluster. Raises ValueError for one that is not valid."""
    found = _CLUSTER.fullmatch(url)
    nodes = [_NODE.fullmatch(node) for node in found[3].split(",")] if found else []
    if found is None or not all(nodes):
        raise ValueError("not the address of a cluster")
    given = (Node(node[1].strip("[]"), int(node[2] or 6379)) for node in nodes if node)
    return ClusterAddress(found[1], found[2] or "", tuple(given), found[4] or "")


def greeted(connection: Any) -> str:
    """Set a new connection up, and return which run of a server it has reached, empty where it is
    not allowed to ask. A server that was restarted, or a replica that was promoted, has another
    one.
    """
    # A check of the health would connect again where the server wants a password, without end.
    connection.on_connect_check_health(check_health=False)
    connection.send_command("INFO", "server", check_health=False)
    try:
        answer = connection.read_response()
    except redis.ResponseError:
        return ""
    found = re.search(rb"run_id:(\w+)", answer if isinstance(answer, bytes) else answer.encode())
    return found[1].decode() if found else ""


class SlotClient(redis.Redis):
    """A client of the node that has the slot of a key; it connects when it is first used.

    options: of every connection. What fails because the slot moves or its node is away is tried
    again for a second: everything that is written through this client may be repeated. Raises
    ValueError and TypeError for an address that is not valid.
    """

    def __init__(self, url: str, key: str, **options: Any) -> None:
        self._pools: dict[Node, redis.ConnectionPool] = {}  # first: `close` needs it
        self._address = cluster_address(url)
        self._slot = key_slot(key.encode())
        self._options = options | {"retry": Retry(NoBackoff(), 0)}
        self._run_ids: dict[Node, str] = {}
        self._known: list[Node] = list(self._address.nodes)
        self._found = False
        self._moves = 0  # how often the slot was found at another node than before
        self._finding = threading.Lock()
        self._node = self._known[0]
        super().__init__(connection_pool=self._pool(self._node))

    def run_id(self) -> str:
        """Return which run of which server has the slot; the same in all processes."""
        return self._run_ids.get(self._node, "")

    def moves(self) -> int:
        """Return how often this client has found the slot at another node than before."""
        return self._moves

    def execute_command(self, *args: Any, **options: Any) -> Any:
        return self._followed(lambda: self._one(args, options))

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        if transaction:
            return super().pipeline(transaction, shard_hint)
        return _Pipeline(self)

    def transaction(
        self, func: Callable[[Pipeline], Any], *watches: Any, **options: Any
    ) -> list[Any] | Any | None:
        return self._followed(lambda: redis.Redis.transaction(self, func, *watches, **options))

    def pipelined(self, commands: Sequence[tuple[Any, Any]]) -> list[Any]:
        """Return the answers to commands, sent together, each about one key."""
        return self._followed(lambda: self._several(commands))

    def close(self) -> None:
        for pool in list(self._pools.values()):
            pool.disconnect()

    def _one(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        try:
            return cast(Any, super()).execute_command(*args, **options)
        except AskError as problem:
            return self._asked([(args, options)], [problem])[0]

    def _several(self, commands: Sequence[tuple[Any, Any]]) -> list[Any]:
        pipe: Any
        with super().pipeline(transaction=False) as pipe:
            for args, options in commands:
                pipe.execute_command(*args, **options)
            return self._asked(commands, pipe.execute(raise_on_error=False))

    def _asked(self, commands: Sequence[tuple[Any, Any]], answers: list[Any]) -> list[Any]:
        """Return answers after asking the node that the slot moves to where the other one says so.
        Raises the first error among them.
        """
        gone = [index for index, answer in enumerate(answers) if type(answer) is AskError]
        if gone:
            target = self._named(answers[gone[0]])
            pipe: Any
            with redis.Redis(connection_pool=self._pool(target)).pipeline(False) as pipe:
                for index in gone:
                    args, options = commands[index]
                    pipe.execute_command("ASKING")
                    pipe.execute_command(*args, **options)
                for index, answer in zip(gone, pipe.execute(False)[1::2], strict=True):
                    answers[index] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def _followed(self, work: Callable[[], Answer]) -> Answer:
        """Do something where the slot is; again, for a while, after the slot has moved or while its
        node is away.
        """
        end = time.monotonic() + _PATIENCE
        if not self._found:
            self._find(self._moves, end)
        while True:
            moves = self._moves
            try:
                return work()
            except redis.AuthenticationError:
                raise
            except (AskError, TryAgainError, *_AWAY) as problem:
                if time.monotonic() > end:
                    raise
                time.sleep(_PAUSE)
                if isinstance(problem, MovedError):
                    self._go(self._named(problem))
                elif isinstance(problem, _AWAY):
                    self._find(moves, end)

    def _find(self, moves: int, end: float) -> None:
        """Ask the nodes where the slot is, unless another thread has found it meanwhile. Raises the
        last error where none of them knows, or time is up.
        """
        with self._finding:
            if moves != self._moves:
                return
            problem: Exception | None = None
            for node in sorted(self._known, key=lambda node: node == self._node):
                if problem is not None and time.monotonic() > end:
                    break
                try:
                    client: Any = redis.Redis(connection_pool=self._pool(node))
                    ranges = client.execute_command("CLUSTER SLOTS")
                except redis.AuthenticationError:
                    raise
                except _AWAY as found:
                    problem = found
                    continue
                masters = self._masters(ranges, node)
                self._known = list(dict.fromkeys([*masters.values(), *self._address.nodes]))
                for slots, master in masters.items():
                    if self._slot in slots:
                        self._go(master)
                        return
            raise problem or redis.ConnectionError(f"no node has hash slot {self._slot}")

    @staticmethod
    def _masters(ranges: Sequence[Any], asked: Node) -> dict[range, Node]:
        """Return which node has which slots; one without a host is where the answer came from."""
        return {
            range(first, last + 1): Node(_text(master[0]) or asked.host, int(master[1]))
            for first, last, master, *_ in ranges
        }

    def _named(self, problem: AskError) -> Node:
        """Return the node that an answer refers to; without a host it is on that of this node."""
        return Node(problem.host or self._node.host, problem.port)

    def _go(self, node: Node) -> None:
        self._found = True
        if node != self._node:
            self.connection_pool = self._pool(node)
            self._node = node
            self._moves += 1

    def _pool(self, node: Node) -> redis.ConnectionPool:
        if node not in self._pools:

            def connected(connection: Any) -> None:
                self._run_ids[node] = greeted(connection)

            self._pools[node] = redis.ConnectionPool.from_url(
                self._address.of(node), **self._options, redis_connect_func=connected
            )
        return self._pools[node]


class _Pipeline(Pipeline):
    """Commands that are sent together, each about one key; not a transaction."""

    def __init__(self, client: SlotClient) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, False, None)
        self._of = client

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands = list(self.command_stack)
        self.reset()
        return self._of.pipelined(commands)


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""
