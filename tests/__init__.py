"""Tests, a folder for each package of distilrec."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
