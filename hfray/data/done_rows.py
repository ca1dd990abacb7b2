"""Which rows an output folder already holds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from pyarrow.compute import ExtractRegexOptions, call_function

from hfray.data.output import OutputFolder
from hfray.data.parts import open_part

HASH = np.dtype([("high", ">u8"), ("low", ">u8")])


@dataclass(slots=True)
class DoneRows:
    """The ids of finished rows, stored compactly: a bitmap per input file for positions, else 128-bit hashes."""

    count: int = 0
    failed: int = 0
    bitmaps: dict[str, np.ndarray] = field(default_factory=dict)
    hashes: np.ndarray | None = None

    @classmethod
    def read(cls, output: OutputFolder, by_position: bool, skip_failed: bool = False) -> DoneRows:
        """Read the row ids of all finished files.

        Args:
            skip_failed: failed rows are not done.

        Raises:
            SettingsError: a file is damaged.
        """
        positions: dict[str, list[np.ndarray]] = {}
        hashes: list[np.ndarray] = []
        count = failed = 0
        for part in output.parts():
            with open_part(output, part, ["row_id", "error"]) as parquet:
                rows = parquet.read(columns=["row_id", "error"])
            if skip_failed:
                rows = rows.filter(rows["error"].is_null())
            ids = rows["row_id"]
            count += len(ids)
            failed += len(ids) - rows["error"].null_count
            if by_position:
                for name, found in split_positions(ids.combine_chunks()):
                    positions.setdefault(name, []).append(found)
            else:
                hashes.append(hash_ids(ids.to_pylist()))
        bitmaps = {name: _bitmap(np.concatenate(found)) for name, found in positions.items()}
        return cls(count, failed, bitmaps, None if by_position else np.sort(np.concatenate(hashes or [hash_ids([])])))

    def drop_from(self, block: pa.Table) -> pa.Table:
        """The block without the rows that are done."""
        if not self.count:
            return block
        ids = block["row_id"].combine_chunks()
        done = np.zeros(len(ids), dtype=bool)
        if self.hashes is not None:
            done = _contains(self.hashes, hash_ids(ids.to_pylist()))
        else:
            start = 0
            for name, positions in split_positions(ids):  # a block's rows come from one file
                done[start : start + len(positions)] = _set_bits(self.bitmaps.get(name), positions)
                start += len(positions)
        return block.filter(pa.array(~done)) if done.any() else block


def split_positions(ids: pa.Array) -> list[tuple[str, np.ndarray]]:
    """Ids `name:position` as positions grouped by file name, in the order of the names' first occurrence."""
    if not len(ids):
        return []
    parts = call_function("extract_regex", [ids], ExtractRegexOptions(r"^(?P<name>(?s:.*)):(?P<position>\d+)$"))
    names = parts.field("name").dictionary_encode()
    positions = parts.field("position").cast(pa.int64()).to_numpy(zero_copy_only=False)
    codes = names.indices.to_numpy(zero_copy_only=False)
    return [(name, positions[codes == code]) for code, name in enumerate(names.dictionary.to_pylist())]


def hash_ids(ids: list[str]) -> np.ndarray:
    """128-bit hashes of ids, as sortable bytes."""
    digests = (hashlib.blake2b(i.encode("utf-8", "surrogatepass"), digest_size=16).digest() for i in ids)
    return np.frombuffer(b"".join(digests), dtype=HASH)


def _contains(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if not len(known):
        return np.zeros(len(wanted), dtype=bool)
    at = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return known[at] == wanted


def _bitmap(positions: np.ndarray) -> np.ndarray:
    bits = np.zeros(int(positions.max()) + 1, dtype=bool)
    bits[positions] = True
    return np.packbits(bits)


def _set_bits(bitmap: np.ndarray | None, positions: np.ndarray) -> np.ndarray:
    if bitmap is None:
        return np.zeros(len(positions), dtype=bool)
    inside = positions < len(bitmap) * 8
    at = np.where(inside, positions, 0)
    return inside & ((bitmap[at >> 3] >> (7 - (at & 7))) & 1).astype(bool)
