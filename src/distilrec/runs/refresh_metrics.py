"""The last refresh as metrics for Prometheus, in a file that the textfile collector of its
node_exporter reads.
"""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from distilrec.files import write_whole
from distilrec.runs.refreshing import Refreshed


def write_refresh_metrics(done: Refreshed | None, path: Path, *, ended: float) -> None:
    """Write the last refresh in the text format of Prometheus, whole or not at all.

    done: None where no refresh has made a generation yet. ended: when the command ended, in seconds
    since 1970, also where it found no new rows.
    """
    values = {"ended_timestamp_seconds": ("When a refresh ended, with new rows or without", ended)}
    if done is not None:
        gain = done.gain.interval
        values |= {
            "finished_timestamp_seconds": ("When it ended, in seconds since 1970", done.finished),
            "duration_seconds": ("How long it took", done.seconds),
            "passed": ("1 where the new bundle counts, 0 where it missed the gate", done.passed),
            "generation": ("Number of the generation that it made", done.generation),
            "rows": ("Rows that were new", done.rows),
            "known_rows": ("Rows left out because the log has them", done.known),
            "erased_rows": ("Rows left out because their users were erased", done.erased),
            "gain_ndcg": ("NDCG@10 of the new bundle minus that of the one before", gain.mean),
            "gain_ndcg_low": ("Lower end of the 95% interval of the gain", gain.low),
            "gain_ndcg_high": ("Upper end of the 95% interval of the gain", gain.high),
        }
    registry = CollectorRegistry()
    for name, (what, value) in values.items():
        gauge = Gauge(f"distilrec_refresh_{name}", f"{what}.", registry=registry)
        gauge.set(float(value))
    write_whole(path, generate_latest(registry))
    path.chmod(0o644)  # the exporter is another user
