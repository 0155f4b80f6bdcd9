"""The command line: thin, every stage is one function of `distilrec.runs`.

The commands are in `training`, `sweeping`, `serving`, `consuming` and `privacy`; importing them
adds them to `app`. This package is the only place that prints.
"""

from __future__ import annotations

from distilrec.cli import training, sweeping, serving, consuming, privacy  # isort: skip  (in the order of the reference)
from distilrec.cli.app import app, main

__all__ = ["app", "consuming", "main", "privacy", "serving", "sweeping", "training"]
