"""Hydra's composition of conf/: a command's overrides in, plain values out, which `hfray.config.build` checks."""

from __future__ import annotations

import dataclasses
import difflib
import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hfray.config import POOL_GROUPS, PromptSettings, SettingsError, known_keys
from hfray.urls import URL

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
LIST_OF_POOLS = re.compile(r"workers=\s*\[")


def config_folder() -> Path:
    """The folder of presets: inside the installed package, or at the top of a checkout."""
    here = Path(__file__).parent
    return here / "conf" if (here / "conf").is_dir() else here.parent / "conf"


def compose(root: str, overrides: list[str]) -> dict[str, Any]:
    """Compose conf/`root`.yaml with `overrides` as Hydra does; returns plain values.

    Raises:
        SettingsError: an unknown key, group, preset or a must that is missing.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    _check_pool_keys(overrides)
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            config = hydra_compose(root, [opened for override in overrides for opened in _opened(override)])
            pools = config.get("workers")
            for number, pool in enumerate(pools if OmegaConf.is_list(pools) else []):
                _name_choices(hydra_compose, f"workers[{number}]", pool)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(_explain(error, overrides)) from error
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise SettingsError(f"{missing[0]} is not given. Add `{missing[0]}=...` to the command.")
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise SettingsError(str(error)) from error
    values.pop("conf", None)
    _move_target(values.get("prompt"))
    return values


def _move_target(prompt: dict[str, Any] | None) -> None:
    """`prompt._target_` and the arguments beside it, as Hydra spells an object, become `prompt.target`."""
    if prompt and "_target_" in prompt:
        own = {field.name for field in dataclasses.fields(PromptSettings)}
        prompt["target"] = {key: prompt.pop(key) for key in list(prompt) if key not in own}


def _check_pool_keys(overrides: list[str]) -> None:
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
    key, _, value = override.partition("=")
    if LIST_OF_POOLS.match(override):
        return ["~workers", f"+{override}"]
    if URL.fullmatch(value) and not re.search(r"[,'\"]", value):
        override = f"{key}='{value}'"  # Hydra's grammar stops at the `=` of a URL's query
    return [f"++{override}" if override.startswith(OPEN_KEYS) else override]


def _explain(error: Exception, overrides: list[str]) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    for override in overrides:
        key, _, value = override.partition("=")
        if f"'{key.lstrip('+~')}'" not in text and f"'{key}/{value}'" not in text:
            continue
        if list((config_folder() / key).glob("*.yaml")):
            return _no_such_choice(key, value, key)
        close = difflib.get_close_matches(key, known_keys(), n=1)
        return f"{key}={value}: there is no such key. " + (f"Did you mean {close[0]}?" if close else "See --help.")
    return " ".join(lines[:3])


def _no_such_choice(key: str, value: str, group: str) -> str:
    options = sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))
    close = difflib.get_close_matches(value, options, n=1)
    meant = f"Did you mean {close[0]}? " if close else ""
    return f"{key}={value}: there is no such choice. {meant}Choices: {', '.join(options)}."
