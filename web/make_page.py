"""Write a page that recommends by itself, for any static host: the student of a bundle, the npm
package, and the files of web/page.

    python web/make_page.py --bundle runs/ml-100k/bundle --folder runs/ml-100k/page
    python -m http.server --directory runs/ml-100k/page
"""

from __future__ import annotations

import argparse
import json
from hashlib import sha256
from pathlib import Path

from distilrec.bundle.format import read_bundle
from distilrec.engine.web import write_drec
from distilrec.files import write_whole

WEB = Path(__file__).resolve().parent
WORKER, CODE, STUDENT = "worker.js", "distilrec.js", "student.drec"


def write_page(bundle: Path, folder: Path) -> int:
    """Write the files of the page, the service worker last, which makes browsers take the others;
    return their bytes together.

    Raises the errors of `read_bundle` and `write_drec`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_drec(read_bundle(bundle), folder / STUDENT)
    files = {path.name: path.read_bytes() for path in sorted((WEB / "page").iterdir())}
    worker = files.pop(WORKER).decode()
    files[CODE] = (WEB / "dist" / CODE).read_bytes()
    for name, data in files.items():
        write_whole(folder / name, data)
    files[STUDENT] = (folder / STUDENT).read_bytes()
    version = sha256(b"".join(sha256(data).digest() for data in files.values())).hexdigest()
    names = json.dumps(["./", *files])
    worker = worker.replace('"VERSION"', f'"{version[:16]}"').replace('["FILES"]', names)
    write_whole(folder / WORKER, worker.encode())
    return sum(map(len, files.values())) + len(worker.encode())


def main() -> None:
    """Write the page of the bundle that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("runs/ml-100k/bundle"))
    parser.add_argument("--folder", type=Path, default=Path("runs/ml-100k/page"))
    arguments = parser.parse_args()
    size = write_page(arguments.bundle, arguments.folder)
    print(f"{arguments.folder}: {size:,} bytes, for any static host")


if __name__ == "__main__":
    main()
