"""What the bench measures: its settings and its prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from hfray.config.batch import BatchSettings
from hfray.data.readers import read_slice
from hfray.errors import SettingsError

PREFIX_WORDS = 800  # about a thousand tokens
LONG_WORDS = 600
LENGTHS_WORDS = 160
STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BenchOptions:
    """What is measured."""

    rounds: int = Field(default=3, ge=1)
    case: str = "questions"
    contestants: list[str] = Field(default_factory=lambda: ["genai", "engine", "job"])
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)  # the job with other settings
    peers: dict[str, list[str]] = Field(default_factory=dict)
    paths: dict[str, str | None] = Field(default_factory=dict)

    def usable_peers(self) -> dict[str, list[str]]:
        """The peers whose commands need no path that is not given."""
        missing = ["{" + name + "}" for name, path in self.paths.items() if path is None]
        return {
            name: command
            for name, command in self.peers.items()
            if not any(path in part for path in missing for part in command)
        }


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BenchSettings(BatchSettings):
    """A batch job's settings, and what of it to measure."""

    ROOT: ClassVar = "bench"

    bench: BenchOptions


def write_case(settings: BenchSettings, path: Path) -> int:
    """Write the case's records (one column, `question`) as JSONL; returns how many."""
    from hfray.data.scan import scan

    table = scan(settings.input)
    rows = [row for piece in table.slices for block in read_slice(table, piece, 4096) for row in block.to_pylist()]
    questions = [row["question"] for row in rows if row.get("question")]
    filler = " ".join(questions).split() * 20
    case = settings.bench.case
    if case == "prefix":
        head = "Examples of questions: " + " ".join(filler[:PREFIX_WORDS])
        questions = [f"{head}\n\n{question}" for question in questions]
    elif case == "duplicates":
        repeats = (1, 4, 7)  # of ten rows, each with the question of a row before that is none of them
        sources = [i // 2 - (i // 2 % 10 in repeats) if i % 10 in repeats else i for i in range(len(questions))]
        questions = [questions[source] for source in sources]
    elif case == "long":
        questions = [" ".join(filler[i * 7 : i * 7 + LONG_WORDS]) + "\n\n" + q for i, q in enumerate(questions)]
    elif case == "lengths":  # with generation.max_length, which counts the prompt, and generation.ignore_eos=true
        questions = [" ".join(filler[i * 7 : i * 7 + 4 + i * 37 % LENGTHS_WORDS]) for i in range(len(questions))]
    elif case != "questions":
        raise SettingsError(f"bench.case={case}: must be questions, prefix, duplicates, long or lengths.")
    path.write_text("".join(json.dumps({"question": question}) + "\n" for question in questions))
    return len(questions)
