"""The service as replicas on a Ray cluster: the same application in each, users shared through
Redis.

Ray Serve starts a proxy on every machine that has a replica, spreads the requests and replaces
replicas that die. Every machine must see the bundle and the file of keys under the same path.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

from starlette.types import ASGIApp

from distilrec.errors import ClusterError, first_line, missing_extra
from distilrec.scale.ray_workers import connect
from distilrec.serve.app import make_app
from distilrec.serve.config import ServiceConfig
from distilrec.serve.keys import read_keys
from distilrec.serve.logs import log, start_logging
from distilrec.serve.server import settle, try_out
from distilrec.serve.service import open_service
from distilrec.stores.opening import check_sharing

_NAME = "distilrec"
_CHECK_SECONDS = 1.0  # between two looks at a replica
_AT_ONCE = 1_000  # requests that a replica may have waiting
_GRACE_SECONDS = 10.0


def serve_on_ray(config: ServiceConfig, address: str) -> None:
    """Serve by `config.workers` replicas until told to stop; replace an earlier service of this
    cluster.

    Raises what `serve` raises before it starts, ConfigError for a store that replicas cannot share,
    MissingExtraError and ClusterError.
    """
    check_sharing(config.store, "store", "replicas on a cluster")
    try:
        from ray import serve
        from ray.serve.config import HTTPOptions
    except ImportError:
        raise missing_extra("ray[serve]", "ray") from None
    start_logging()
    try_out(config)
    ray = connect(address)
    stop = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: stop.set())
    try:
        serve.start(
            proxy_location="EveryNode", http_options=HTTPOptions(host=config.host, port=config.port)
        )
        as_deployment: Any = serve.deployment(
            name=_NAME,
            num_replicas=config.workers,
            ray_actor_options={"num_cpus": 1},
            max_ongoing_requests=_AT_ONCE,
            health_check_period_s=_CHECK_SECONDS,
            health_check_timeout_s=_GRACE_SECONDS,
            graceful_shutdown_timeout_s=_GRACE_SECONDS,
        )
        replica = as_deployment(serve.ingress(lambda: _application(config))())
        serve.run(replica.bind(), name=_NAME, route_prefix="/")
        log("serving on ray", replicas=config.workers, port=config.port)
        stop.wait()
        serve.shutdown()  # type: ignore[no-untyped-call]
    except (RuntimeError, ray.exceptions.RayError) as problem:
        raise ClusterError(
            f"the service cannot run on the Ray cluster: {first_line(problem)}",
            fix="see `serve status` and the logs of Ray; each replica needs one free CPU",
            address=address,
        ) from None


def _application(config: ServiceConfig) -> ASGIApp:
    """Return what a replica serves; called in its process."""
    start_logging()
    app = make_app(open_service(config), read_keys(config.keys))
    settle()
    return app
