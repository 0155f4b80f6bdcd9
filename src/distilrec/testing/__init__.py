"""Contract tests for the parts that others can add: stores, students and teachers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distilrec._lazy import lazy_names

if TYPE_CHECKING:
    from distilrec.testing.stores import StoreContract
    from distilrec.testing.students import StudentContract
    from distilrec.testing.teachers import TeacherContract

_MODULES = {
    "StoreContract": "stores",
    "StudentContract": "students",
    "TeacherContract": "teachers",
}
__getattr__ = lazy_names(__name__, _MODULES)

__all__ = [
    "StoreContract",
    "StudentContract",
    "TeacherContract",
]
