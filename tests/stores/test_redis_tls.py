"""Redis and a Redis Cluster over TLS and with users: what works, and what each mistake is called."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis

from distilrec.consume import ConsumeConfig, consume
from distilrec.errors import FileMissingError, SourceUnavailableError, StoreUnavailableError
from distilrec.stores import redis as redis_store
from distilrec.stores.opening import open_store, shown
from distilrec.testing.stores import StoreContract, event
from tests.servers import Certificates, Redis, RedisCluster, Server, until

pytestmark = pytest.mark.redis

WORD = "gehe%im/word@7"  # a password with all that has to be encoded
PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
RIGHTS = re.findall(r"ACL SETUSER shop on >PASSWORD ~distilrec:\* (.*)", PAGE)[0]
USERS = {
    "shop": RIGHTS + " ~distilrec:* ~{distilrec}:* ~test_*",
    "reader": "+@read +@connection +info ~*",
    "halting": RIGHTS + " -rpush ~*",
    "elsewhere": RIGHTS + " ~elsewhere:*",
}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


def with_users(nodes: list[Redis], certificates: Certificates) -> None:
    """Adds users, and shuts out everybody else."""
    for node in nodes:
        with admin(node, certificates) as client:
            for name, rights in USERS.items():
                client.execute_command("ACL", "SETUSER", name, "on", f">{WORD}", *rights.split())
            client.execute_command("ACL", "SETUSER", "admin", "on", f">{WORD}", "+@all", "~*")
            client.execute_command("ACL", "SETUSER", "default", "off")


def admin(node: Redis, certificates: Certificates, **who: str) -> redis.Redis:
    authority = str(certificates.authority)
    return redis.Redis("localhost", node.port, ssl=True, ssl_ca_certs=authority, **who)


@pytest.fixture(scope="module")
def one(tmp_path_factory, certificates) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("redis"), certificates)
    with_users([server], certificates)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def several(tmp_path_factory, certificates) -> Iterator[RedisCluster]:
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"), certificates)
    with_users(cluster.nodes, certificates)
    yield cluster
    for node in cluster.nodes:
        node.stop()


@pytest.fixture(params=["one", pytest.param("several", marks=pytest.mark.slow)])
def address(request, certificates):
    """Makes an address of a server, or of a cluster, from a user and a password."""
    server = request.getfixturevalue(request.param)

    def made(user="shop", word=WORD, scheme="rediss", options="?ssl_ca_certs={}"):
        who = f"{user}:{quote(word, safe='')}@" if user else ""
        options = options.format(certificates.authority)
        if request.param == "one":
            return f"{scheme}://{who}localhost:{server.port}/0{options}"
        places = ",".join(f"localhost:{node.port}" for node in server.nodes)
        return f"{scheme}+cluster://{who}{places}/{options}"

    return made


class TestRedisOverTls(StoreContract):
    """As the user of the documentation, who has no other rights."""

    pytestmark = pytest.mark.slow

    @pytest.fixture
    def opener(self, one, certificates, request):
        address = f"rediss://shop:{quote(WORD, safe='')}@localhost:{one.port}/0?ssl_ca_certs={certificates.authority}"
        return lambda: open_store(address, prefix=f"{request.node.name}:")

    def damage_item(self, store, item_id):
        store._client.hset(store._prefix + "items", item_id, b'{"item_id": 7')


def test_events_are_stored_and_read(address, tmp_path):
    store = open_store(address())
    assert all(store.append([event(number=1), event(number=2)]))
    assert store.check() == []
    store.erase("u1")
    store.close()
    (tmp_path / "word").write_text(WORD + "\n")
    by_file = address().replace(":" + quote(WORD, safe="") + "@", "@")
    assert by_file != address()
    store = open_store(by_file, password_file=tmp_path / "word")
    assert all(store.append([event(number=3)]))
    store.close()


@pytest.mark.parametrize(
    ("change", "why", "fix"),
    [
        ({"word": "tops3cret"}, "it refuses user and password", "--store-password-file"),
        ({"user": "nobody"}, "it refuses user and password", "--store-password-file"),
        ({"user": ""}, "it wants a password", "--store-password-file"),
        ({"options": ""}, "its certificate is not trusted", "?ssl_ca_certs="),
        ({"scheme": "redis", "options": ""}, "localhost", "rediss://"),
        ({"user": "reader"}, "its user lacks a right", "ACL SETUSER"),
        ({"user": "elsewhere"}, "its user lacks a right", "ACL SETUSER"),
        ({"user": "halting"}, "its user lacks a right", "ACL SETUSER"),
        ({"options": "?ssl_cert_reqs=tops3cret"}, "is not valid", "rediss://"),
        ({"scheme": "redis"}, "is not valid", "rediss://"),
    ],
)
def test_mistakes_have_a_name_and_keep_the_password(address, change, why, fix):
    wrong = address(**change)
    with pytest.raises(StoreUnavailableError) as caught:
        store = open_store(wrong)
        store.check()
        store.append([event()])
    assert why in caught.value.message and fix in caught.value.fix
    assert shown(wrong) in caught.value.message
    said = f"{caught.value} {caught.value.fix} {caught.value.context}"
    assert not [word for word in (WORD, quote(WORD, safe=""), "tops3cret") if word in said]


def test_files_of_certificates(one, certificates):
    for file, error, why in (
        ("/nowhere/ca.crt", FileMissingError, "/nowhere/ca.crt .* cannot be read"),
        (certificates.key, StoreUnavailableError, "a file of certificates is not valid"),
    ):
        with pytest.raises(error, match=why) as caught:
            open_store(f"rediss://shop@localhost:{one.port}/0?ssl_ca_certs={file}")
        assert "ssl_ca_certs" in caught.value.fix


def test_the_authority_from_the_environment(one, certificates, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    open_store(f"rediss://shop:{quote(WORD, safe='')}@localhost:{one.port}/0").close()


def test_a_stream_over_tls(one, certificates, monkeypatch, tmp_path):
    with admin(one, certificates, username="admin", password=WORD) as client:
        client.xadd("test_stream", {"user_id": "u1", "item_id": "i1"})
    source = f"rediss-stream://admin@localhost:{one.port}/0/test_stream"
    config = ConsumeConfig(source, f"sqlite:///{tmp_path / 'store.db'}", until_empty=True)
    monkeypatch.setenv("DISTILREC_SOURCE_PASSWORD", WORD)
    with pytest.raises(SourceUnavailableError, match="certificate verify failed") as caught:
        consume(config)
    assert "SSL_CERT_FILE" in caught.value.fix
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    assert consume(config).delivered == 1
    monkeypatch.setenv("DISTILREC_SOURCE_PASSWORD", "tops3cret")
    with pytest.raises(SourceUnavailableError) as caught:
        consume(config)
    assert "password" in caught.value.fix and "tops3cret" not in str(caught.value)


def test_the_certificate_of_another_host(one, certificates):
    with pytest.raises(StoreUnavailableError, match="its certificate is of another host") as caught:
        open_store(f"rediss://127.0.0.1:{one.port}/0?ssl_ca_certs={certificates.authority}")
    assert "host name that the certificate is for" in caught.value.fix


def test_a_server_that_wants_certificates_of_its_clients(tmp_path, certificates):
    server = Redis(tmp_path, certificates)
    with admin(server, certificates) as client:
        client.config_set("tls-auth-clients", "yes")
    address = f"rediss://localhost:{server.port}/0?ssl_ca_certs={certificates.authority}"
    with pytest.raises(StoreUnavailableError, match="wants a certificate of its clients") as caught:
        open_store(address)
    assert "ssl_certfile" in caught.value.fix
    own = f"&ssl_certfile={certificates.server}&ssl_keyfile={certificates.key}"
    open_store(address + own).close()
    server.stop()


def test_a_server_that_speaks_no_tls(redis_server, certificates, monkeypatch):
    monkeypatch.setattr(redis_store, "_TIMEOUT", 0.2)
    with pytest.raises(StoreUnavailableError, match="perhaps it speaks no TLS") as caught:
        open_store(f"rediss://localhost:{redis_server.port}/0")
    assert "redis://" in caught.value.fix


@pytest.mark.slow
@pytest.mark.server
def test_a_service_says_what_is_wrong_and_never_the_password(bundle, one, certificates):
    address = f"rediss://shop:{{}}@localhost:{one.port}/0?ssl_ca_certs={certificates.authority}"
    words = [WORD, quote(WORD, safe=""), "tops3cret"]
    refused = Server(bundle, address.format("tops3cret"), wait=False)
    assert refused.process.wait(120) == 2
    said = refused.log.read_text()
    assert "it refuses user and password" in said and "--store-password-file" in said
    service = Server(bundle, address.format(quote(WORD, safe="")))
    service.event("u1", "i1")
    with admin(one, certificates, username="admin", password=WORD) as client:
        client.execute_command("ACL", "SETUSER", "shop", f"<{WORD}", ">tops3cret")
        client.execute_command("CLIENT", "KILL", "USER", "shop")
        answer = service.client.post("/v1/recommend", json={"user_id": "u1"})
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "the store cannot be used"  # to strangers
        until(lambda: "it refuses user and password" in service.log.read_text(), "the log says why")
        said += answer.text + service.client.get("/metrics").text
        said += service.client.get("/readyz").text
        client.execute_command("ACL", "SETUSER", "shop", "<tops3cret", f">{WORD}")
    until(lambda: service.client.get("/readyz").status_code == 200, "the store is back")
    service.event("u1", "i2")
    assert service.stop() == 0
    said += service.log.read_text()
    assert "unforeseen" not in said
    assert not [word for word in words if word in said]
