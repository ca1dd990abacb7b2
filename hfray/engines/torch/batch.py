"""The rows that run together: their slots, their KV cache, and their newest tokens on the device."""

from __future__ import annotations

import torch

from hfray.engines.torch.admission import REFILL_SHARE, Admission
from hfray.engines.torch.kvcache import BatchCache
from hfray.engines.torch.row import Row
from hfray.engines.torch.transfer import to_device


class RunningBatch:
    """Rows in slots.

    Attributes:
        rows: the row of each slot; None: the row has finished, and no other has taken its slot.
        alive: the number of running rows.
        cache: the KV cache of the slots; None before the first row.
        last: the newest token of each slot, int64 [slots], on the device.
    """

    def __init__(self) -> None:
        self.rows: list[Row | None] = []
        self.alive = 0
        self.cache: BatchCache | None = None
        self.last = torch.zeros(0, dtype=torch.long)
        self._changed = False  # rows came or left since the last `tidy`

    def running(self) -> list[tuple[int, Row]]:
        """The running rows with their slots."""
        return [(slot, row) for slot, row in enumerate(self.rows) if row is not None]

    def leave(self, slot: int) -> None:
        """The row of this slot runs no more."""
        self.rows[slot] = None
        self.alive -= 1
        self._changed = True

    def put_cache(self, cache: BatchCache, count: int) -> list[int]:
        """Add the KV cache of `count` prefilled rows; returns their slots, which stay empty until `put`."""
        if self.cache is None or not self.alive:
            self.cache, self.rows = cache, []
            self.last = torch.zeros(count, dtype=torch.long, device=cache.mask.device)
            return list(range(count))
        self.cache.trim(self.length)
        slots = [slot for slot, row in enumerate(self.rows) if row is None][:count]
        number = len(self.rows) + count - len(slots)
        slots += range(len(self.rows), number)
        self.cache.put(slots, number, cache)
        self.last = torch.nn.functional.pad(self.last, (0, number - len(self.rows)))
        return slots

    def put(self, slots: list[int], rows: list[Row], tokens: torch.Tensor) -> None:
        """Put rows and their newest tokens into the slots that `put_cache` returned."""
        self.last[to_device(slots, self.last.device, torch.long)] = tokens
        self.rows.extend([None] * (max(slots) + 1 - len(self.rows)))
        for slot, row in zip(slots, rows, strict=True):
            self.rows[slot] = row
        self.alive += len(rows)
        self._changed = True

    @property
    def length(self) -> int:
        """The positions that the running rows need: the newest token of a row is not in the cache."""
        return max(row.length - 1 for _, row in self.running())

    def tidy(self, admission: Admission) -> list[Row]:
        """Before a step: drop unused positions, and the slots of finished rows if they are many.

        Returns:
            Rows that were put out because the cache has no memory to grow.
        """
        if self.cache is None or not (self._changed or self.cache.full):
            return []
        evicted = self._evict(admission) if self.cache.full else []
        if not self.alive:
            self.__init__()
            return evicted
        finished = len(self.rows) - self.alive
        growing = self.cache.full and len(self.rows) > admission.slots_for(self.length + 1)
        if finished > len(self.rows) // REFILL_SHARE or (finished and growing):
            keep = [slot for slot, _ in self.running()]
            self.cache.keep(keep)
            self.last = self.last[to_device(keep, self.last.device, torch.long)]
            self.rows = [self.rows[slot] for slot in keep]
        self.cache.trim(self.length)
        self.cache.set_running([row is not None for row in self.rows])
        self._changed = False
        return evicted

    def _evict(self, admission: Admission) -> list[Row]:
        """Put out the rows with the fewest tokens until the others fit in memory."""
        running, evicted = self.running(), list[Row]()
        running.sort(key=lambda pair: len(pair[1].tokens), reverse=True)
        while len(running) > admission.slots_for(max((row.length for _, row in running), default=0)):
            for _ in range(max(1, len(running) // REFILL_SHARE)):
                slot, row = running.pop()
                self.leave(slot)
                evicted.append(row)
        return evicted
