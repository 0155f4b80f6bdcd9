"""Films: MovieLens 1M, which distilrec fetches itself; age, gender, occupation of the person, year
and genres of the film.

What it shows: long histories, and quality by age, gender and occupation for teacher and student.
What it cannot show: what people watched when (they rated many films in one sitting, in the order of
a list). About an hour on two cores.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from recipe import main

if __name__ == "__main__":
    main(Path(__file__).resolve().parent)
