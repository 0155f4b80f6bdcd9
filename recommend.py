"""Recommendations from a bundle: python recommend.py --user_id 123 --item_ids 456,789,101."""

import os
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_PYTHON = _HERE / ".venv" / "bin" / "python"

try:
    from distilrec.cli import main
except ModuleNotFoundError as missing:
    # Any python may start this file: go on with the one that `make demo` set up.
    if _PYTHON.exists() and Path(sys.prefix).resolve() != (_HERE / ".venv").resolve():
        os.execv(_PYTHON, [str(_PYTHON), __file__, *sys.argv[1:]])
    print(
        f"error: the package {missing.name!r} is not installed\n  how to fix: make demo, or pip "
        "install .",
        file=sys.stderr,
    )
    sys.exit(2)

if __name__ == "__main__":
    os.environ.setdefault("DISTILREC_BUNDLE", str(_HERE / "runs" / "ml-100k" / "bundle"))
    main(["recommend", *sys.argv[1:]])
