"""What the tests of the engines share: students of each kind, one in one file, and a static host for pages."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from distilrec.bundle.format import read_bundle
from distilrec.data.dataset import Dataset
from distilrec.engine.web import write_drec
from tests import ROOT, small_run


def _bundle(kind: str, small: Dataset, folder: Path) -> Path:
    """The bundle of a student of a kind; "neighbours" is a recurrent one that has some."""
    from distilrec.export.export import export_bundle
    from distilrec.training.options import TrainingConfig
    from distilrec.training.trained import train_model

    config = small_run.STUDENTS.get(kind)
    if config is None:
        config = msgspec.structs.replace(
            small_run.STUDENTS["recurrent"], neighbours=5, repeat_events=20
        )
    student = train_model(config, small, TrainingConfig(epochs=2, batch_size=16), seed=0)
    export_bundle(student, small, folder)
    return folder


@pytest.fixture(scope="package")
def trained(small, tmp_path_factory) -> Path:
    """The bundle of a student with all that the kind can have."""
    return _bundle("neighbours", small, tmp_path_factory.mktemp("web") / "bundle")


@pytest.fixture(scope="package", params=["neighbours", *small_run.STUDENTS])
def folder(request, small, tmp_path_factory) -> Path:
    """The bundle of a student of each kind, and of one with neighbours."""
    return _bundle(request.param, small, tmp_path_factory.mktemp("kind") / "bundle")


@pytest.fixture(scope="package")
def student(trained) -> Path:
    """The same student in one file."""
    file = trained.parent / "student.drec"
    assert write_drec(read_bundle(trained), file).overlap > 0.95
    return file


class _Host(SimpleHTTPRequestHandler):
    """A static host. Pages of no origin, which a sandbox makes, may load its files too."""

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        if self.path.startswith("/sandboxed"):
            self.send_header("Content-Security-Policy", "sandbox allow-scripts")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hosted(folder: Path) -> Iterator[str]:
    """Serve the files of a folder; yields the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Host, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="package")
def site_folder(student, tmp_path_factory) -> Path:
    """The package, the file, a worker and empty pages."""
    folder = tmp_path_factory.mktemp("site")
    worker = Path(__file__).parent / "web" / "worker.mjs"
    for path in (ROOT / "web" / "dist" / "distilrec.js", student, worker):
        shutil.copy(path, folder)
    (folder / "package.json").write_text('{"type": "module"}')  # for Node
    for name in ("index", "sandboxed"):
        (folder / f"{name}.html").write_text("<!doctype html><title>A page</title>")
    return folder


@pytest.fixture(scope="package")
def site(site_folder) -> Iterator[str]:
    """A static host with these."""
    with hosted(site_folder) as address:
        yield address
