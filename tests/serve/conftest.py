"""What tests of the service share."""

from __future__ import annotations

import pytest

from tests.servers import Server, until


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def opened(request, bundle, tmp_path):
    """Starts a service over the same store, again and again: one process, or two workers."""
    options, address = [], f"sqlite:///{tmp_path / 'store.db'}"
    if request.param == "redis":
        options, address = ["--workers", 2], request.getfixturevalue("redis_server").url
    services = []

    def start() -> Server:
        services.append(Server(bundle, address, *options))
        ready = 2 if options else 1
        until(lambda: services[-1].log.read_text().count('"event":"ready"') == ready, "ready")
        return services[-1]

    yield start
    assert services[-1].stop() == 0
    for service in services:
        assert "unforeseen" not in service.log.read_text()
