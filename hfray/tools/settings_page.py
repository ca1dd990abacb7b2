"""docs/settings.md, from the settings dataclasses and the comments in conf/.

python -m hfray.tools.settings_page
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Literal

import yaml

from hfray.config.backend import FakeBackend, OpenVINOBackend, TransformersBackend, VLLMBackend
from hfray.config.batch import BatchSettings
from hfray.config.compose import config_folder
from hfray.config.declared import alternatives
from hfray.config.serve import ServeSettings
from hfray.params import GenerationParams
from hfray.runs.compare import CompareSettings
from hfray.runs.status import StatusSettings
from hfray.tools.bench_cases import BenchSettings
from hfray.tools.export import ExportSettings

ENTRY = re.compile(r"(?P<indent> *)(?P<name>\w+):(?P<value>.*?)(\s# (?P<meaning>.*))?")
ENGINE_KEYS = ("model", "task", "backend", "device", "generation", "prompt", "response")
INTRODUCTION = """# Settings

`make docs` writes this page from the settings classes and the comments in conf/. Do not edit it.

A command takes `conf=PRESET`, `group=choice` and `key=value`. A key that takes text gets the text as typed; other values
are YAML: `null`, `true`, `[1, 4]`, `{a: 1}`. `--cfg` prints the composed settings. Unknown keys and impossible values end
a command with exit code 2, before it starts anything.
"""
COMMANDS: list[tuple[str, str, type, str]] = [
    ("Batch jobs", "hfray batch", BatchSettings, "batch"),
    ("The online service", "hfray serve", ServeSettings, "serve"),
    ("Export to OpenVINO", "hfray export", ExportSettings, "export"),
    ("Benchmarks", "hfray bench", BenchSettings, "bench"),
    ("Status", "hfray status", StatusSettings, "status"),
    ("Comparison", "hfray compare", CompareSettings, "compare"),
]


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """One row of a table."""

    name: str
    kind: str
    default: str
    meaning: str


def settings_page() -> str:
    """The whole page as Markdown. Raises ValueError if a key has no comment in conf/."""
    parts = [INTRODUCTION, "## Presets: `conf=`\n", _choices("conf")]
    engine = typing.get_type_hints(BatchSettings, include_extras=True)
    parts += ["## Model: `model=`, `model.*`\n", _choices("model"), _section("model", engine["model"], "model/local")]
    parts += ["## Task\n", _table(_keys(BatchSettings, "", "engine", only=["task"]))]
    parts += ["## Backend: `backend=`, `backend.*`\n", _choices("backend")]
    for backend in (OpenVINOBackend, TransformersBackend, VLLMBackend, FakeBackend):
        name = backend.__name__.removesuffix("Backend").lower()
        parts += [f"### `backend={name}`\n", _section("backend", backend, f"backend/{name}")]
    parts += [
        "## Device: `device=`, `device.*`\n",
        _choices("device"),
        _section("device", engine["device"], "device/cpu"),
    ]
    parts += ["## Generation: `generation.*`\n", "`stop` is another name of `stop_strings`.\n", _table(_generation())]
    source = "prompt/think_step_by_step"
    parts += ["## Prompt: `prompt=`, `prompt.*`\n", _choices("prompt"), _section("prompt", engine["prompt"], source)]
    parts += ["## Typed answers: `response.*`\n", _section("response", engine["response"], "engine")]
    shown: set[str] = set(ENGINE_KEYS)
    for title, command, kind, root in COMMANDS:
        parts += [f"## {title}: `{command}`\n", _command(kind, root, shown)]
        if kind is BatchSettings:
            shown |= {field.name for field in dataclasses.fields(kind)} - {"output"}
    return "\n".join(parts)


def _command(kind: type, root: str, shown: set[str]) -> str:
    """The keys of a command that no earlier table has shown."""
    own = [
        f.name for f in dataclasses.fields(kind) if f.name not in shown or (kind is ServeSettings and f.name == "emit")
    ]
    if kind is BenchSettings:
        own = ["bench"]
    hints = typing.get_type_hints(kind, include_extras=True)
    tables: list[str] = []
    plain: list[Key] = []
    for name in own:
        if _dataclass_in(hints[name]) is None:
            plain += _keys(kind, "", root, only=[name])
        else:
            tables.append(_section(name, hints[name], root))
    lead = "The keys of a batch job, and these:\n\n" if kind is BenchSettings else ""
    lead = "The keys of the engine and of `workers` and `ray`, and these:\n\n" if kind is ServeSettings else lead
    groups = ["`suite=`:\n\n" + _choices("suite")] if kind is BenchSettings else []
    return lead + "\n".join([*groups, *tables, *([_table(plain)] if plain else [])])


def _choices(group: str) -> str:
    rows = ["| choice | meaning |", "| --- | --- |"]
    for path in sorted((config_folder() / group).glob("*.yaml")):
        lines = [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]
        meaning = next((line for line in lines if not line.startswith("@package")), "")
        rows.append(f"| `{path.stem}` | {_cell(meaning)} |")
    return "\n".join([*rows, ""])


def _section(name: str, hint: object, source: str) -> str:
    kind = _dataclass_in(hint)
    assert kind is not None
    return _table(_keys(kind, f"{name}.", source))


def _keys(kind: type, prefix: str, source: str, only: list[str] | None = None) -> list[Key]:
    """The keys of a settings class, with the defaults and comments of a file in conf/."""
    comments, values = _read(source)
    hints = typing.get_type_hints(kind, include_extras=True)
    section = values if not prefix or "/" in source else values.get(prefix.rstrip("."), {})
    keys = []
    for field in dataclasses.fields(kind):
        if only and field.name not in only:
            continue
        name = "_target_" if prefix == "prompt." and field.name == "target" else field.name
        meaning = comments.get(name if "/" in source else f"{prefix}{name}")
        if not meaning:
            raise ValueError(f"conf/{source}.yaml: {prefix}{name} has no comment. Write what the key means.")
        given = section.get(name)
        shown = "required" if given == "???" else _value(given)
        keys.append(Key(f"{prefix}{name}", _type(hints[field.name]), shown, meaning))
    if prefix == "prompt.":  # composing replaces it by `template`, so no class declares it
        keys.append(Key("prompt.template_file", "text, null", "`null`", comments["template_file"]))
    return keys


def _generation() -> list[Key]:
    lines = re.findall(r"^        (\w[\w, ]*): (.*(?:\n {12}.*)*)", GenerationParams.__doc__ or "", re.MULTILINE)
    meanings = {name: " ".join(text.split()) for names, text in lines for name in names.split(", ")}
    _, preset = _read("generation/greedy")
    hints = typing.get_type_hints(GenerationParams)
    return [
        Key(
            f"generation.{field.name}",
            _type(hints[field.name]),
            _value(preset.get(field.name, field.default if field.default != () else [])),
            meanings.get(field.name, "as in transformers' GenerationConfig"),
        )
        for field in dataclasses.fields(GenerationParams)
        if field.name in GenerationParams.names()
    ]


def _read(source: str) -> tuple[dict[str, str], dict[str, typing.Any]]:
    """The comments of a file in conf/ by dotted key, and its values."""
    text = (config_folder() / f"{source}.yaml").read_text()
    comments: dict[str, str] = {}
    section = ""
    for line in text.splitlines():
        match = ENTRY.fullmatch(line)
        if match is None:
            target = re.fullmatch(r"# (.*): prompt\._target_=.*", line)
            comments |= {"_target_": target[1]} if target else {}
            continue
        if not match["indent"]:
            section = match["name"]
        key = f"{section}.{match['name']}" if match["indent"] else section
        comments.setdefault(key, match["meaning"] or "")
    values = yaml.safe_load(text) or {}
    if source == "bench":  # the suite completes this section
        suite, own = _read("suite/own")
        comments |= {f"bench.{name}": meaning for name, meaning in suite.items()}
        values["bench"] |= own
    return comments, values


def _table(keys: list[Key]) -> str:
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    rows += [f"| `{key.name}` | {_cell(key.kind)} | {_cell(key.default)} | {_cell(key.meaning)} |" for key in keys]
    return "\n".join([*rows, ""])


def _type(hint: object) -> str:
    words = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}
    shown = []
    for part in alternatives(hint):
        plain = typing.get_args(part)[0] if typing.get_origin(part) is typing.Annotated else part
        origin, inner = typing.get_origin(plain), typing.get_args(plain)
        if origin is Literal:
            shown += [f"`{value}`" for value in inner]
        elif origin in (list, tuple):
            shown.append(f"list of {_type(inner[0])}")
        elif origin is dict:
            shown.append("mapping")
        else:
            shown.append(words.get(typing.cast(type, plain), "mapping"))
    return ", ".join(shown)


def _dataclass_in(hint: object) -> type | None:
    """The first settings class among the members of a type."""
    for part in alternatives(hint):
        plain = typing.get_args(part)[0] if typing.get_origin(part) is typing.Annotated else part
        if isinstance(plain, type) and dataclasses.is_dataclass(plain):
            return plain
    return None


def _value(value: object) -> str:
    if isinstance(value, str) and "\n" in value:
        return f"`{json.dumps(value)}`"
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    target = Path(__file__).parents[2] / "docs" / "settings.md"
    target.write_text(settings_page(), encoding="utf-8")
    print(target)
