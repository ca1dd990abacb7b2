"""What a fault did to a job, and the table of all faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

COLUMNS = ("fault", "times", "rows lost", "rows repeated", "wrong texts", "unplanned errors", "extra work, %", "")


@dataclass(slots=True)
class Outcome:
    """What a fault did.

    Attributes:
        injected: how often the fault happened.
        lost, repeated: rows without an output row, and output rows beyond the first of a row.
        wrong: rows with another text than without the fault.
        unplanned_errors: rows that failed and should not, or the reverse.
        extra: rows answered beyond the table's rows, in per cent of these; None if they were not counted.
        surprises: what else should not have happened, such as another exit code.
        notes: remarks about the run.
    """

    fault: str
    injected: int = 0
    lost: int = 0
    repeated: int = 0
    wrong: int = 0
    unplanned_errors: int = 0
    extra: float | None = None
    surprises: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_bad(self) -> bool:
        """Whether the job broke its promise, or no fault hit it: the table was done too early."""
        return bool(
            not self.injected or self.lost or self.repeated or self.wrong or self.unplanned_errors or self.surprises
        )


def print_table(outcomes: Sequence[Outcome]) -> None:
    """Print a row for every fault."""
    table = Table(*COLUMNS)
    for one in outcomes:
        extra = "" if one.extra is None else f"{one.extra:.1f}"
        numbers = (one.injected, one.lost, one.repeated, one.wrong, one.unplanned_errors)
        table.add_row(one.fault, *map(str, numbers), extra, "; ".join([*one.surprises, *one.notes]))
    Console(width=160).print(table)
