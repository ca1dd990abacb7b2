"""The bench's settings, and the prompts of each case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from hfray.config.batch import BatchSettings
from hfray.data import readers
from hfray.errors import SettingsError

PREFIX_WORDS = 800  # about a thousand tokens
LONG_WORDS = 600
LENGTHS_WORDS = 160
STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BenchOptions:
    """Which contestants run, on which case, and how often."""

    rounds: int = Field(default=3, ge=1)
    case: Literal["questions", "prefix", "duplicates", "long", "lengths", "schema"] = "questions"
    contestants: list[Literal["genai", "engine", "actor", "feed", "job", "typed", "plain"]] = Field(
        default_factory=lambda: ["genai", "engine", "job"]
    )
    variants: dict[str, dict[str, object]] = Field(default_factory=dict)  # the job with changed settings
    peers: dict[str, list[str]] = Field(default_factory=dict)
    precisions: dict[str, str] = Field(default_factory=dict)  # of peers whose RESULT line does not tell it
    paths: dict[str, str | None] = Field(default_factory=dict)

    def usable_peers(self) -> dict[str, list[str]]:
        """The peers with all paths of their commands in `bench.paths`."""
        missing = ["{" + name + "}" for name, path in self.paths.items() if path is None]
        return {
            name: command
            for name, command in self.peers.items()
            if not any(path in part for path in missing for part in command)
        }


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BenchSettings(BatchSettings):
    """The settings of a batch job, and how to measure the job."""

    ROOT: ClassVar[str] = "bench"

    bench: BenchOptions


def write_case(settings: BenchSettings, path: Path) -> int:
    """Write the case's records (one column, `question`) as JSONL. Returns the number of records. Raises SettingsError."""
    from hfray.data.scan import scan

    table = scan(settings.input)
    rows = [row for piece in table.slices for block in readers.read(table, piece, 4096) for row in block.to_pylist()]
    questions = [row["question"] for row in rows if row.get("question")]
    if not questions:
        raise SettingsError(
            f"input.path={settings.input.path}: no row has a text in the column `question`. The bench needs that column."
        )
    questions = prompts_of(settings.bench.case, questions)
    path.write_text("".join(json.dumps({"question": question}) + "\n" for question in questions))
    return len(questions)


def prompts_of(case: str, questions: list[str]) -> list[str]:
    """The prompts that a case makes of the questions: as many as there are questions."""
    filler = " ".join(questions).split() * 20
    if case == "prefix":
        head = "Examples of questions: " + " ".join(filler[:PREFIX_WORDS])
        return [f"{head}\n\n{question}" for question in questions]
    if case == "duplicates":
        repeats = (1, 4, 7)  # positions, in every ten rows, that repeat an earlier question
        sources = [i // 2 - (i // 2 % 10 in repeats) if i % 10 in repeats else i for i in range(len(questions))]
        return [questions[source] for source in sources]
    if case == "long":
        return [" ".join(filler[i * 7 : i * 7 + LONG_WORDS]) + "\n\n" + q for i, q in enumerate(questions)]
    if case == "lengths":  # use it with generation.max_length, which counts the prompt, and generation.ignore_eos=true
        return [" ".join(filler[i * 7 : i * 7 + 4 + i * 37 % LENGTHS_WORDS]) for i in range(len(questions))]
    return questions
