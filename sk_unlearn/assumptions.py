"""What a certificate rests on, and how well each part is founded."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How well an assumption is founded; a certificate is as strong as its weakest one."""

    BY_CONSTRUCTION = "BY_CONSTRUCTION"
    PROVED = "PROVED"
    MEASURED = "MEASURED"
    ASSUMED = "ASSUMED"
    REFUTED = "REFUTED"

    @property
    def formal(self) -> bool:
        """Whether a formal certificate may rest on it."""
        return self in (Status.BY_CONSTRUCTION, Status.PROVED)


@dataclass(frozen=True)
class Assumption:
    """One thing that a certificate rests on.

    Parameters
    ----------
    name : str
        Short name.
    status : Status
        How well it is founded.
    statement : str
        What is taken to hold, in terms of constants only.
    evidence : str
        What was seen in this run; it may depend on the deleted rows and stays in the
        operator's copy.
    """

    name: str
    status: Status
    statement: str
    evidence: str = ""


CORRECTION = Assumption(
    "correction",
    Status.BY_CONSTRUCTION,
    "the statement is against training on the corrected data: the same rows in the same order, "
    "the rows in question with their new features and labels",
)
