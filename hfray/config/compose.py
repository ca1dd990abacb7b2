"""Hydra's composition of conf/: a command's overrides in, plain values out, which `hfray.config.build.build` checks."""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from hfray.config.batch import BatchSettings
from hfray.config.build import build, known_keys
from hfray.config.engine import PromptSettings
from hfray.config.overrides import OVERRIDE, TypedText, quoted
from hfray.config.workers import POOL_GROUPS
from hfray.errors import SettingsError

# Below these keys anything may be written: they go through to a library that has its own names.
OPEN_KEYS = (
    "generation.",
    "backend.ov_config.",
    "backend.options.",
    "model.kwargs.",
    "workers.resources.",
    "workers.labels.",
    "prompt._target_",
    "bench.peers.",
    "bench.paths.",
    "bench.variants.",
)
T = TypeVar("T")
LIST_OF_POOLS = re.compile(r"workers=\s*\[")


def config_folder() -> Path:
    """The folder of presets: inside the installed package, or at the top of a checkout."""
    here = Path(__file__).parents[1]
    return here / "conf" if (here / "conf").is_dir() else here.parent / "conf"


def load_settings(overrides: Sequence[str] = (), kind: type[T] = BatchSettings) -> T:
    """The settings of a run from what a command takes: `load_settings(["conf=bloom_gpu", "input.path=in.jsonl", ...])`.

    Raises:
        SettingsError: the settings cannot be used; the message names the key, its value and the remedy.
    """
    return build(kind, compose(kind, overrides))


def compose(kind: type, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose the conf/ file of a settings class with `overrides`, as Hydra does; returns plain values.

    The value of a key that takes text is taken as it stands, whatever is in it; see `hfray.config.overrides`.

    Raises:
        SettingsError: an unknown key, group, preset or a must that is missing.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    _check_pool_keys(overrides)
    typed = TypedText(kind)
    held = [typed.hold_back(override) for override in overrides]
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            config = hydra_compose(kind.ROOT, [opened for override in held for opened in _opened(override)])
            pools = config.get("workers")
            for number, pool in enumerate(pools if OmegaConf.is_list(pools) else []):
                _name_choices(hydra_compose, f"workers[{number}]", pool)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(_explain(error, overrides)) from error
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise SettingsError(f"{missing[0]} is not given. Add `{missing[0]}=...` to the command.")
    try:
        values = typed.put_back(OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise SettingsError(str(error)) from error
    values.pop("conf", None)
    _read_template(values.get("prompt"), overrides)
    _move_target(values.get("prompt"))
    return values


def _read_template(prompt: dict[str, Any] | None, overrides: Sequence[str]) -> None:
    """The text of `prompt.template_file`, without its last line end, becomes `prompt.template`. Raises SettingsError."""
    path = prompt.pop("template_file", None) if prompt else None
    if path is None:
        return
    both = next((override for override in overrides if override.lstrip("+").startswith("prompt.template=")), None)
    if both:
        raise SettingsError(f"prompt.template_file={path}: {both} is given too. Drop one of them.")
    try:
        prompt["template"] = Path(path).expanduser().read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"prompt.template_file={path}: cannot be read ({error}). Name a UTF-8 text file."
        ) from error


def _move_target(prompt: dict[str, Any] | None) -> None:
    """`prompt._target_` and the arguments beside it, as Hydra spells an object, become `prompt.target`."""
    if prompt and "_target_" in prompt:
        own = {field.name for field in dataclasses.fields(PromptSettings)}
        prompt["target"] = {key: prompt.pop(key) for key in list(prompt) if key not in own}


def _check_pool_keys(overrides: Sequence[str]) -> None:
    """Refuse keys below `workers` beside a list of pools: they belong into one of these. Raises SettingsError."""
    single = next((override for override in overrides if override.lstrip("+~").startswith("workers.")), None)
    if single and any(LIST_OF_POOLS.match(override) for override in overrides):
        inside = single.lstrip("+~").removeprefix("workers.").replace("=", ": ", 1)
        raise SettingsError(
            f"{single}: workers is a list of pools here. Write it into each that it is for: workers='[{{{inside}, ...}}]'."
        )


def _name_choices(hydra_compose: Any, key: str, pool: Any) -> None:
    """Put what the choices stand for that a pool names (`backend: openvino`) in their places."""
    for group in POOL_GROUPS if OmegaConf.is_dict(pool) else ():
        choice = pool.get(group)
        if not isinstance(choice, str):
            continue
        if not (config_folder() / group / f"{choice}.yaml").is_file():
            raise SettingsError(_no_such_choice(f"{key}.{group}", choice, group))
        pool[group] = hydra_compose(f"{group}/{choice}")[group]


def _opened(override: str) -> list[str]:
    """An override as Hydra takes it: keys below OPEN_KEYS added, `workers` replaced by a list of pools, not merged."""
    if LIST_OF_POOLS.match(override):
        return ["~workers", f"+{override}"]
    return [f"++{override}" if override.startswith(OPEN_KEYS) else override]


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    if isinstance(error, OverrideParseException):
        return _explain_grammar(error.override)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.startswith("Ambiguous value"):  # Hydra takes what stands between commas for several values
        return _explain_grammar(text.partition("'")[2].rpartition("'")[0])
    for override in overrides:
        key, _, value = override.partition("=")
        if f"'{key.lstrip('+~')}'" not in text and f"'{key}/{value}'" not in text:
            continue
        if list((config_folder() / key).glob("*.yaml")):
            return _no_such_choice(key, value, key)
        close = difflib.get_close_matches(key, known_keys(), n=1)
        return f"{key}={value}: there is no such key. " + (f"Did you mean {close[0]}?" if close else "See --help.")
    return " ".join(lines[:3])


def _explain_grammar(override: str) -> str:
    """Which override Hydra's grammar does not read, and how it is quoted."""
    override = override.removeprefix("++")  # which keys below OPEN_KEYS get here
    match = OVERRIDE.fullmatch(override)
    if match is None:
        return f"{override}: is no key=value. Write it as KEY=VALUE, without spaces around the =."
    return (
        f"{override}: Hydra's grammar does not read the value of {match['key']}. "
        f"If it is text, put it between quotes: {shlex.quote(match['key'] + '=' + quoted(match['value']))}"
    )


def _no_such_choice(key: str, value: str, group: str) -> str:
    options = sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))
    close = difflib.get_close_matches(value, options, n=1)
    meant = f"Did you mean {close[0]}? " if close else ""
    return f"{key}={value}: there is no such choice. {meant}Choices: {', '.join(options)}."
