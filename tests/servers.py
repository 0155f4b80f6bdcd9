"""Real servers for the tests: Redis, databases, and the service through its command line."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self, TypeVar

import httpx
import pytest

Found = TypeVar("Found")
marks: set[str] = set()  # those of the test that runs; tests/conftest.py sets them
started: list[Server] = []  # by the tests of this process, in order
PATIENCE = 120.0  # seconds; what a busy machine may take for what an idle one does at once


def needs(mark: str) -> None:
    """Checks that the running test has the mark by which `make test-fast` leaves it out."""
    assert mark in marks, f"this test needs @pytest.mark.{mark}"


def program(name: str) -> str:
    """The path of a program from the system's packages; the test is skipped without it, or fails in CI."""
    found = shutil.which(name)
    if found is None:
        message = f"{name} is not installed (make system)"
        if os.environ.get("DISTILREC_REQUIRE_ALL"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def until(found: Callable[[], Found], what: str, seconds: float = PATIENCE) -> Found:
    """Asks again and again until the answer is true, and gives it; `what` should have happened."""
    end = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)
    return answer


def free_port() -> int:
    """A port that nobody listens on, below those that the system gives to clients: nobody gets it by chance."""
    while True:
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def unnamed(answer: dict) -> dict:
    """An answer without its own name, which no other answer has."""
    assert len(answer["recommendation_id"]) == 32
    return {name: value for name, value in answer.items() if name != "recommendation_id"}


class Certificates:
    """A certificate authority that nobody trusts by itself, and a certificate of it for localhost."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.key, self.server = (folder / name for name in ("ca", "key", "server"))
        authority_key, request = folder / "ca-key", folder / "request"
        new = "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"
        self._run(*new, "-x509", "-subj", "/CN=authority", "-keyout", authority_key, "-out", self.authority)  # fmt: skip
        self._run(*new, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", self.key, "-out", request)  # fmt: skip
        self._run("x509", "-req", "-in", request, "-CA", self.authority, "-CAkey", authority_key, "-CAcreateserial", "-copy_extensions", "copy", "-out", self.server)  # fmt: skip

    @staticmethod
    def _run(*arguments: object) -> None:
        command = [program("openssl"), *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True)

    def accepted(self, connection: socket.socket) -> socket.socket:
        """A connection with TLS over another one."""
        context = ssl.create_default_context(cafile=str(self.authority))
        return context.wrap_socket(connection, server_hostname="localhost")


class Redis:
    """A Redis server of its own, durable, on loopback. tls: it speaks TLS only; more: of its options."""

    def __init__(self, folder: Path, tls: Certificates | None = None, **more: object) -> None:
        needs("redis")
        self.folder, self._tls = folder, tls
        self._more: dict[str, object] = dict(more)
        if tls is not None:
            self._more |= {
                "tls-cert-file": tls.server, "tls-key-file": tls.key,
                "tls-ca-cert-file": tls.authority, "tls-auth-clients": "no",
            }  # fmt: skip
        for _ in range(20):
            self.port = free_port()
            if self._started():
                break
        else:
            raise AssertionError("redis-server did not start")
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Starts it again where it was."""
        assert self._started(), f"redis-server did not start on port {self.port}"

    def _started(self) -> bool:
        """Whether this very process answers on the port; it ends where somebody else has taken the port."""
        ports = {"port": self.port} if self._tls is None else {"port": 0, "tls-port": self.port}
        options = {
            **ports, "bind": "127.0.0.1", "dir": self.folder, "save": "", "appendonly": "yes",
            "appendfsync": "always", "daemonize": "no", **self._more,
        }  # fmt: skip
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self.process = subprocess.Popen(
            [program("redis-server"), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(
            lambda: self.process.poll() is not None or self._answers(),
            "redis-server answers or ends",
        )
        return self.process.poll() is None

    def _answers(self) -> bool:
        try:
            with ExitStack() as stack:
                connection = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
                stack.callback(connection.close)
                if self._tls is not None:
                    connection = stack.enter_context(self._tls.accepted(connection))
                connection.sendall(b"INFO server\r\n")
                return f"process_id:{self.process.pid}\r".encode() in connection.recv(65_536)
        except OSError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)


class RedisCluster:
    """A Redis Cluster of its own: three servers, each with a third of the hash slots."""

    def __init__(self, folder: Path, tls: Certificates | None = None) -> None:
        self.nodes = list[Redis]()
        self._tls = tls
        for name in ("one", "two", "three"):
            (folder / name).mkdir()
            options = {"cluster-enabled": "yes", "cluster-port": free_port()}
            if tls is not None:
                names = {"cluster-announce-hostname": "localhost", "cluster-preferred-endpoint-type": "hostname"}  # fmt: skip
                options |= {"tls-cluster": "yes", **names}
            self.nodes.append(Redis(folder / name, tls, **options))
        places = [f"127.0.0.1:{node.port}" for node in self.nodes]
        self.cli("--cluster", "create", *places, "--cluster-yes")
        self.url = f"redis+cluster://{','.join(places)}"
        until(self.is_up, "all nodes say that the cluster is up")

    def cli(self, *arguments: object) -> str:
        """What `redis-cli` says to arguments, asked of the first node."""
        tls = [] if self._tls is None else ["--tls", "--cacert", self._tls.authority, "--sni", "localhost"]  # fmt: skip
        command = [program("redis-cli"), "-p", self.nodes[0].port, *tls, *arguments]
        return subprocess.run(
            [str(part) for part in command], check=True, capture_output=True, text=True
        ).stdout

    def is_up(self) -> bool:
        return all(
            "cluster_state:ok" in self.cli("-p", node.port, "cluster", "info")
            for node in self.nodes
        )

    def slot(self, prefix: str) -> int:
        """The hash slot of a store."""
        return int(self.cli("cluster", "keyslot", f"{{{prefix.rstrip(':')}}}"))

    def name(self, node: Redis) -> str:
        return self.cli("-p", node.port, "cluster", "myid").strip()

    def owner(self, slot: int) -> Redis:
        """The node that has a slot, as the first node knows it."""
        for line in self.cli("cluster", "nodes").splitlines():
            place, ranges = line.split()[1], line.split()[8:]
            for first, _, last in (text.partition("-") for text in ranges if text[0] != "["):
                if int(first) <= slot <= int(last or first):
                    port = int(place.partition("@")[0].rpartition(":")[2])
                    return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"no node has slot {slot}")

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


class Server:
    """`distilrec serve` in a process of its own. port: one that the system chooses, unless given."""

    def __init__(
        self, bundle: Path, store: str, *options: object, port: int = 0, wait: bool = True,
        python: Sequence[str] = (sys.executable,), log_folder: Path | None = None, **popen,
    ):  # fmt: skip
        needs("server")
        self.log = (log_folder or Path(bundle).parent) / f"serve-{time.monotonic_ns()}.log"
        command = [
            *python, "-m", "distilrec.cli", "serve", "--bundle", bundle, "--store", store, "--port", port, *options,
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdout=log,
                stderr=log,
                start_new_session=True,
                **popen,
            )
        started.append(self)
        self._at(port)
        if wait:
            self.wait()

    def _at(self, port: int) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False)

    def wait(self) -> None:
        """Until it is ready."""
        if not self.port:
            self.client.close()
            self._at(int(until(self._port_in_log, "the service names its address")))
        until(self._is_ready, "the service is ready")

    def _port_in_log(self) -> str | None:
        self._check_alive()
        found = re.search(
            r"(?:running on|listening).*?https?://[^\s\"]*:(\d+)", self.log.read_text()
        )
        return found and found[1]

    def _is_ready(self) -> bool:
        self._check_alive()
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _check_alive(self) -> None:
        code = self.process.poll()
        assert code is None, f"the service ended with {code}: {self.log.read_text()}"

    def post(self, path: str, **body) -> dict:
        response = self.client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def items(self, user: str, **more) -> list[str]:
        return [
            item["item_id"] for item in self.post("/v1/recommend", user_id=user, **more)["items"]
        ]

    def event(self, user: str, item: str, **more) -> dict:
        return self.post("/v1/events", events=[{"user_id": user, "item_id": item, **more}])

    def kill(self) -> None:
        """Ends it with all its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.client.close()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.client.close()
        code = self.process.wait(PATIENCE)
        if code:
            print(self.log.read_text()[-10_000:])  # noqa: T201 - what a failing test shows
        return code


@contextmanager
def served(bundle: Path, *options: object, store: str = "store.db") -> Iterator[Server]:
    """A service of a bundle with a store beside it, which ends well and has met nothing unforeseen."""
    service = Server(bundle, f"sqlite:///{Path(bundle).parent / store}", *options)
    yield service
    assert service.stop() == 0
    assert "unforeseen" not in service.log.read_text()


class _Database:
    """A database server of its own in a temporary folder, on loopback, with a user and a password."""

    mark, user, password, scheme = "", "shop", "gehe%im secret", ""

    def __init__(self) -> None:
        needs(self.mark)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.mark}-"))
        self.folder.chmod(0o755)
        self.port = free_port()
        self.address = f"{self.scheme}://{self.user}@127.0.0.1:{self.port}/shop"

    def __enter__(self) -> Self:
        try:
            self.start()
            self.prepare()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *problem: object) -> None:
        if process := getattr(self, "process", None):
            process.send_signal(signal.SIGINT if self.mark == "postgresql" else signal.SIGTERM)
            process.wait(PATIENCE)
        shutil.rmtree(self.folder)

    def start(self) -> None:
        raise NotImplementedError

    def prepare(self) -> None:
        raise NotImplementedError

    def _begin(self, arguments: Sequence[object], who: str | None) -> None:
        """Starts the server, which refuses to run as root."""
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [str(part) for part in arguments], user=who, stdout=log, stderr=log
            )
        until(self._answers, f"{self.mark} answers")

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


class PostgreSQL(_Database):
    """durable: whether it waits for its disk, which tests need not."""

    mark, scheme = "postgresql", "postgresql"

    def __init__(self, durable: bool = False) -> None:
        super().__init__()
        self._durable = durable

    def start(self) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        initdb = str(programs[-1] / "initdb") if programs else program("initdb")
        who = "postgres" if os.getuid() == 0 else None
        word = self.folder / "password"
        word.write_text(self.password)
        data = self.folder / "data"
        data.mkdir()
        if who:
            shutil.chown(data, who)
        subprocess.run(
            [initdb, "-D", data, "-U", self.user, "-A", "scram-sha-256", "-N", f"--pwfile={word}"],
            check=True,
            user=who,
            stdout=subprocess.DEVNULL,
        )
        server = str(Path(initdb).resolve().with_name("postgres"))
        options = [
            "-c",
            f"fsync={'on' if self._durable else 'off'}",
            "-c",
            "unix_socket_directories=",
        ]
        self._command = [server, "-D", data, "-p", self.port, "-h", "127.0.0.1", *options], who
        self._begin(*self._command)

    def crash(self) -> None:
        """Ends at once, as after `pg_ctl stop -m immediate`: nothing is written any more."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(PATIENCE)

    def start_again(self) -> None:
        """Starts the server where it was, and waits until it has recovered."""
        self._begin(*self._command)
        self.run("select 1")

    def prepare(self) -> None:
        self.run("create database shop", "postgres")

    def run(self, statement: str, database: str = "shop") -> None:
        import psycopg

        def connected() -> psycopg.Connection | None:
            try:
                return psycopg.connect(
                    self.address.removesuffix("shop") + database,
                    password=self.password,
                    autocommit=True,
                )
            except psycopg.OperationalError:
                return None

        with until(connected, "PostgreSQL accepts a connection") as connection:
            connection.execute(statement.encode())


class MariaDB(_Database):
    mark, scheme = "mariadb", "mysql"

    def start(self) -> None:
        server, install = program("mariadbd"), program("mariadb-install-db")
        who = "mysql" if os.getuid() == 0 else None
        data = self.folder / "data"
        data.mkdir()
        if who:
            shutil.chown(data, who)
        subprocess.run(
            [install, "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal",
             "--skip-test-db"],
            check=True, user=who, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._begin(
            [server, "--no-defaults", f"--datadir={data}", f"--port={self.port}", "--bind-address=127.0.0.1",
             f"--socket={data}/socket", f"--pid-file={data}/pid"],
            who,
        )  # fmt: skip

    def prepare(self) -> None:
        import pymysql

        with (
            pymysql.connect(host="127.0.0.1", port=self.port, user="root") as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("create database shop")
            cursor.execute(f"create user {self.user} identified by %s", [self.password])
            cursor.execute(f"grant all on shop.* to {self.user}")

    def run(self, statement: str) -> None:
        import pymysql

        with pymysql.connect(
            host="127.0.0.1", port=self.port, user=self.user, password=self.password,
            database="shop", autocommit=True,
        ) as connection, connection.cursor() as cursor:  # fmt: skip
            cursor.execute(statement)
