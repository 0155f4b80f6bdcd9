"""Three services on one store, as on three machines: one is killed, and the others go on."""

from __future__ import annotations

import pytest

from distilrec.stores.opening import open_store
from tests.nodes import Alternating, stored
from tests.servers import Server

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(
    params=[
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("redis-cluster", marks=pytest.mark.redis),
        pytest.param("postgresql", marks=pytest.mark.postgresql),
    ]
)
def address(request, monkeypatch) -> str:
    if request.param == "redis":
        return request.getfixturevalue("redis_server").url
    if request.param == "redis-cluster":
        return request.getfixturevalue("redis_cluster").url
    postgresql = request.getfixturevalue("postgresql")
    monkeypatch.setenv("PGPASSWORD", postgresql.password)
    return postgresql.address


def test_a_node_that_is_killed_loses_nothing_and_the_others_go_on(bundle, address):
    nodes = [Server(bundle, address, wait=False) for _ in range(3)]
    for node in nodes:
        node.wait()
    first, killed, last = nodes
    with Alternating([node.url for node in nodes], threads=6) as load:
        load.wait(60)
        killed.kill()
        load.wait(60)
    assert load.retried, "it was killed too late to show anything"
    assert not load.refused
    users = [load.user(number) for number in range(load.users)]
    store = open_store(address)
    try:
        found = stored(store, users)
    finally:
        store.close()
    assert set(load.acknowledged) <= set(found), "an acknowledged event is lost"
    assert set(found.values()) == {1}, "an event is there twice"
    for user in users:
        assert first.items(user, k=10) == last.items(user, k=10)
    for node in (first, last):
        assert node.stop() == 0
        assert "unforeseen" not in node.log.read_text()
