"""The score of `mutmut run` in this folder, by module: the share of mutants that a test noticed
(killed, or timed out).

Mutants that no test reaches count as not noticed.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from mutmut.stats import status_by_exit_code

NOTICED = {"killed", "timeout", "segfault", "caught by type check"}


def main() -> None:
    """Print a table, and a JSON line."""
    scores, everything = {}, Counter[bool]()
    for path in sorted(Path("mutants/src").rglob("*.py.meta")):
        codes = json.loads(path.read_text())["exit_code_by_key"].values()
        found = Counter(status_by_exit_code[code] in NOTICED for code in codes if code is not None)
        if found:
            name = path.name.removesuffix(".py.meta")
            scores[name] = round(found[True] / found.total(), 4)
            everything += found
            print(
                f"{name:>12}  {found[True]:5} of {found.total():5} mutants noticed  "
                f"{scores[name]:.1%}"
            )
    total = everything[True] / everything.total()
    print(
        f"{'all':>12}  {everything[True]:5} of {everything.total():5} mutants noticed  {total:.1%}"
    )
    print(
        json.dumps(
            {"mutation_score": round(total, 4), "mutants": everything.total(), "by_module": scores}
        )
    )


if __name__ == "__main__":
    main()
