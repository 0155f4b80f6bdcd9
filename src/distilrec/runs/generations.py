"""The generations of a run: what each refresh makes, and which one counts.

Generation n is a run folder, `generations/n`; number 0 is the run itself. `generations/current` is
a link to the one that counts, and is replaced as the last step of a refresh: a reader finds
the generation before or the whole new one.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from distilrec.errors import StorageError
from distilrec.files import sync_folder, write_whole
from distilrec.runs.places import Places

_LINK = "current"
_REMOVED = "removed-"


@dataclass(frozen=True)
class Generations:
    """The generations of the run in a folder."""

    run: Path

    @property
    def link(self) -> Path:
        """The link to the generation that counts."""
        return Places(self.run).generations / _LINK

    def current(self) -> int:
        """Return the number of the generation that counts, 0 where there was no refresh. Raises
        StorageError where the link names no generation.
        """
        if not self.link.is_symlink():
            if self.link.exists():  # a copy that followed the link
                raise StorageError(
                    f"{self.link} is a copy of a generation, and no link to one",
                    fix=f"replace it by a link to the one that counts: rm -r {self.link}, then for "
                    f"example ln -s 1 {self.link}",
                    file=str(self.link),
                )
            return 0
        target = os.readlink(self.link)
        if target == os.pardir:  # what was taken back to the run itself
            return 0
        if not target.isdecimal() or not self.folder(int(target)).is_dir():
            raise StorageError(
                f"{self.link} names no generation: {target}",
                fix=f"link it to a folder beside it, for example: ln -sfn 1 {self.link}",
                file=str(self.link),
            )
        return int(target)

    def folder(self, number: int) -> Path:
        """Return the run folder of a generation."""
        return Places(self.run).generations / str(number) if number else self.run

    def folders(self) -> list[Path]:
        """Return the folders of all generations, also of those that do not count, without that of
        the run.
        """
        found = Places(self.run).generations.glob("[0-9]*")
        return sorted(
            (path for path in found if path.name.isdecimal() and not path.is_symlink()),
            key=lambda path: int(path.name),
        )

    def switch(self, number: int) -> None:
        """Let a generation count from now on, durably."""
        new = self.link.with_name(f"{_LINK}.new")
        new.unlink(missing_ok=True)
        new.symlink_to(str(number) if number else os.pardir)
        new.replace(self.link)
        sync_folder(self.link.parent)

    def remove_old(self, keep: int) -> list[int]:
        """Remove the generations before the latest `keep` that count or have counted; return their
        numbers. The one that counts and the one before it stay, and so does the run.

        keep: 0 removes none. The records of who was in the training of a removed generation are
        moved to those of the run. Where this is killed, the next call finishes the work.
        """
        home = Places(self.run)
        for half in home.generations.glob(f"{_REMOVED}*"):
            shutil.rmtree(half)
        if not keep:
            return []
        last = self.current() - max(keep, 2)
        removed = [folder for folder in self.folders() if int(folder.name) <= last]
        for folder in removed:
            for record in Places(folder).seen.glob("*.safetensors"):
                home.seen.mkdir(exist_ok=True)
                write_whole(home.seen / record.name, record.read_bytes())
            gone = folder.with_name(f"{_REMOVED}{folder.name}")
            folder.rename(gone)
            sync_folder(gone.parent)
            shutil.rmtree(gone)
        return [int(folder.name) for folder in removed]
