"""What a Redis server, or the way to it, refuses: what went wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
from redis.exceptions import AskError, ClusterCrossSlotError, NoPermissionError, TryAgainError

from distilrec.errors import FileMissingError, first_line

_AGAIN = "the same request may be sent again"
_RUNS = "check that the server runs and accepts writes"
_MOVING = AskError, TryAgainError, ClusterCrossSlotError
_FILES = "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"
_RIGHTS = "no permission", "acl failure", "executing the script can't"
_CLOSED = "reset by peer", "closed by server", "broken pipe"
_NOT_TLS = "timeout connecting", "wrong version number", "wrong_version_number", "record layer"
_CLIENTS = (
    "name a certificate in the address: &ssl_certfile=/path/to/client.crt"
    "&ssl_keyfile=/path/to/client.key, or set `tls-auth-clients no` on the server"
)


def check_files(options: Mapping[str, Any], where: str) -> None:
    """Raise FileMissingError for a file of certificates that cannot be read. options: of a
    connection; where: the address of the store as messages show it.
    """
    for name in _FILES:
        path = options.get(name)
        if path is None:
            continue
        try:
            Path(path).open("rb").close()
        except OSError as problem:
            raise FileMissingError(
                f"the file {path} of the store {where} cannot be read: {problem.strerror}",
                fix=f"correct {name} in the address of the store",
                file=str(path),
                parameter="store",
            ) from None


def explained(problem: Exception, *, cluster: bool, tls: bool) -> tuple[str, str]:
    """Return why a store cannot be used, and what to do. cluster, tls: of its address."""
    said = first_line(problem)
    if isinstance(problem, redis.AuthenticationError):
        return _unknown_user(said)
    if isinstance(problem, NoPermissionError) or any(part in said.lower() for part in _RIGHTS):
        return (
            f"its user lacks a right: {said.partition(': ')[0]}",
            "give the user of the address the commands and the keys that docs/serving.md names "
            "under `Redis over TLS, and its users` (ACL SETUSER)",
        )
    found = _of_tls(said) if tls else _without_tls(said)
    return found or (_of_cluster if cluster else _of_one_server)(problem, said)


def _unknown_user(said: str) -> tuple[str, str]:
    wanted = "HELLO must be called" in said or "required" in said.lower()
    why = "it wants a password" if wanted else f"it refuses user and password: {said}"
    return why, (
        "check the user and the password in the address (percent-encoded), or the password in "
        "--store-password-file"
    )


def _of_tls(said: str) -> tuple[str, str] | None:
    """Return what is wrong with TLS, None where that is not the problem."""
    lower = said.lower()
    if "certificate verify failed" in lower:
        reason = said.rpartition("certificate verify failed: ")[2].partition(" (_ssl")[0]
        if "mismatch" in lower:
            return f"its certificate is of another host: {reason}", (
                "give the host name that the certificate is for in the address"
            )
        return f"its certificate is not trusted: {reason}", (
            "name the file of the certificate authority in the address: "
            "?ssl_ca_certs=/path/to/ca.crt"
        )
    if "certificate required" in lower or "handshake failure" in lower:
        return "it wants a certificate of its clients", _CLIENTS
    if any(part in lower for part in ("[x509", "[pem", "no start line", "[ssl] pem")):
        return f"a file of certificates is not valid: {said}", (
            "correct ssl_ca_certs, ssl_certfile or ssl_keyfile in the address; they are in PEM"
        )
    if any(part in lower for part in _NOT_TLS):
        return f"{said}; perhaps it speaks no TLS", (
            f"{_RUNS} and speaks TLS at this port, or give redis:// (redis+cluster://); {_AGAIN}"
        )
    if any(part in lower for part in (*_CLOSED, "eof occurred", "unexpected_eof")):
        return f"{said}; perhaps it wants a certificate of its clients", (
            f"{_RUNS}; where it has `tls-auth-clients yes`, {_CLIENTS}"
        )
    return None


def _without_tls(said: str) -> tuple[str, str] | None:
    """Return what is wrong where a server closes a connection, None for other problems."""
    if not any(part in said.lower() for part in _CLOSED):
        return None
    return said, f"{_RUNS}, and give rediss:// (rediss+cluster://) where it wants TLS; {_AGAIN}"


def _of_one_server(problem: Exception, said: str) -> tuple[str, str]:
    if isinstance(problem, _MOVING):
        return "it is a node of a cluster", "give redis+cluster://HOST:PORT,HOST:PORT"
    return said, f"{_RUNS}; {_AGAIN}"


def _of_cluster(problem: Exception, said: str) -> tuple[str, str]:
    if isinstance(problem, _MOVING):
        return "its hash slot is moving to another node", f"wait for the end of that; {_AGAIN}"
    if "cluster support disabled" in said:
        return "it is no node of a cluster", "give redis://HOST:PORT/0 for a single server"
    return said, (
        "check that the node with its hash slot runs and accepts writes, and all others too "
        f"where `cluster-require-full-coverage` is `yes`; {_AGAIN}"
    )
