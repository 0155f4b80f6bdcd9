"""`python -m distilrec.cli` is the command `distilrec`."""

from __future__ import annotations

from distilrec.cli import main

if __name__ == "__main__":
    main()
