"""Hydra's composition of conf/: the overrides of a command become plain values, which `hfray.config.build` checks."""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar, cast, overload

from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from hfray.config.batch import BatchSettings
from hfray.config.build import build
from hfray.config.engine import PromptSettings
from hfray.config.overrides import OVERRIDE, TypedText, quoted
from hfray.config.workers import POOL_GROUPS
from hfray.errors import SettingsError

if TYPE_CHECKING:
    from omegaconf import DictConfig

LIST_OF_POOLS = re.compile(r"workers=\s*\[")
BELOW_A_SECTION = re.compile(r"\w+(\.[\w/-]+)+=")


class Composed(Protocol):
    """Settings of a command: a dataclass with the name of the file in conf/ that composes it."""

    ROOT: ClassVar[str]


T = TypeVar("T", bound=Composed)


def config_folder() -> Path:
    """The conf/ folder: inside the installed package, or at the top of a checkout."""
    here = Path(__file__).parents[1]
    return here / "conf" if (here / "conf").is_dir() else here.parent / "conf"


@overload
def load_settings(overrides: Sequence[str] = ()) -> BatchSettings: ...
@overload
def load_settings(overrides: Sequence[str], kind: type[T]) -> T: ...
def load_settings(overrides: Sequence[str] = (), kind: type[Composed] = BatchSettings) -> Composed:
    """Settings from the words of a command line: `load_settings(["conf=bloom_gpu", "input.path=in.jsonl", ...])`.

    Args:
        overrides: `conf=PRESET`, `group=choice` and `key=value`, as the commands take them.
        kind: BatchSettings, or EngineSettings for an engine alone; the other commands have their own classes.

    Raises:
        SettingsError: the settings cannot be used; the message names the key, its value and the remedy.
    """
    return build(kind, compose(kind, overrides))


def compose(kind: type[Composed], overrides: Sequence[str]) -> dict[str, object]:
    """Compose the conf/ file of a settings class with `overrides`; returns plain values, not checked yet.

    The value of a key that takes text is the text as typed; see `hfray.config.overrides`. A key that no class declares
    passes through to `build`, which reports the keys that exist.

    Raises:
        SettingsError: an unknown group or choice, a value that cannot be parsed, or a required key without a value.
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
            config = hydra_compose(kind.ROOT, [word for override in held for word in _for_hydra(override)])
            pools = config.get("workers")
            for number, pool in enumerate(pools if OmegaConf.is_list(pools) else []):
                _replace_choices(hydra_compose, f"workers[{number}]", pool)
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise SettingsError(f"{missing[0]} is not given. Add `{missing[0]}=...` to the command.")
        values = typed.put_back(cast("dict[str, object]", OmegaConf.to_container(config, resolve=True)))
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(_explain(error, kind, overrides)) from error
    values.pop("conf", None)
    prompt = values.get("prompt")
    if isinstance(prompt, dict):
        _read_template(prompt, overrides)
        _move_target(prompt)
    return values


def _read_template(prompt: dict[str, object], overrides: Sequence[str]) -> None:
    """Replace `prompt.template_file` by `prompt.template`: the file's text without its last line end.

    Raises:
        SettingsError: the file cannot be read, or the command gives a template too.
    """
    path = prompt.pop("template_file", None)
    if path is None:
        return
    both = next((override for override in overrides if override.lstrip("+").startswith("prompt.template=")), None)
    if both:
        raise SettingsError(f"prompt.template_file={path}: {both} is given too. Drop one of them.")
    try:
        prompt["template"] = Path(str(path)).expanduser().read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"prompt.template_file={path}: cannot be read ({error}). Name a UTF-8 text file."
        ) from error


def _move_target(prompt: dict[str, object]) -> None:
    """`prompt._target_` and the arguments beside it, as Hydra writes an object, become `prompt.target`."""
    if "_target_" in prompt:
        own = {field.name for field in dataclasses.fields(PromptSettings)}
        prompt["target"] = {key: prompt.pop(key) for key in list(prompt) if key not in own}


def _check_pool_keys(overrides: Sequence[str]) -> None:
    """Refuse `workers.KEY=...` beside a list of pools: the key belongs inside a pool. Raises SettingsError."""
    single = next((override for override in overrides if override.lstrip("+~").startswith("workers.")), None)
    if single and any(LIST_OF_POOLS.match(override) for override in overrides):
        inside = single.lstrip("+~").removeprefix("workers.").replace("=", ": ", 1)
        raise SettingsError(
            f"{single}: workers is a list of pools here. Write the key into each pool that needs it: "
            f"workers='[{{{inside}, ...}}]'."
        )


def _replace_choices(hydra_compose: Callable[[str], DictConfig], key: str, pool: DictConfig) -> None:
    """Replace each choice that a pool names (`backend: openvino`) by the settings of that choice."""
    for group in POOL_GROUPS if OmegaConf.is_dict(pool) else ():
        choice = pool.get(group)
        if not isinstance(choice, str):
            continue
        if choice not in _choices(group):
            raise SettingsError(_no_such_choice(f"{key}.{group}", choice, group))
        pool[group] = hydra_compose(f"{group}/{choice}")[group]


def _for_hydra(override: str) -> list[str]:
    """An override as Hydra takes it.

    A list of pools replaces `workers`, where Hydra would merge. Hydra adds keys that conf/ does not have, since the
    settings classes and not conf/ say which keys exist.
    """
    if LIST_OF_POOLS.match(override):
        return ["~workers", f"+{override}"]
    return [f"++{override}" if BELOW_A_SECTION.match(override) else override]


def _explain(error: Exception, kind: type[Composed], overrides: Sequence[str]) -> str:
    if isinstance(error, OverrideParseException):
        return _explain_grammar(error.override)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.startswith("Ambiguous value"):  # Hydra reads commas outside quotes as several values
        return _explain_grammar(text.partition("'")[2].rpartition("'")[0])
    for override in overrides:
        key, _, value = override.partition("=")
        if f"'{key.lstrip('+~')}'" not in text and f"'{key}/{value}'" not in text:
            continue
        if _choices(key):
            return _no_such_choice(key, value, key)
        known = [field.name for field in dataclasses.fields(cast("type[BatchSettings]", kind))]
        known += [folder.name for folder in config_folder().iterdir() if folder.is_dir()]
        close = difflib.get_close_matches(key, known, n=1)
        return f"{key}={value}: there is no such key. " + (f"Did you mean {close[0]}?" if close else "See --help.")
    return " ".join(lines[:3])


def _explain_grammar(override: str) -> str:
    """Name the override that Hydra's grammar cannot read, and show it between quotes."""
    override = override.removeprefix("++")
    match = OVERRIDE.fullmatch(override)
    if match is None:
        return f"{override}: this is not key=value. Write KEY=VALUE, without spaces around the =."
    return (
        f"{override}: Hydra's grammar cannot read the value of {match['key']}. "
        f"If it is text, put it between quotes: {shlex.quote(match['key'] + '=' + quoted(match['value']))}"
    )


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml")) if group else []


def _no_such_choice(key: str, value: str, group: str) -> str:
    options = _choices(group)
    close = difflib.get_close_matches(value, options, n=1)
    meant = f"Did you mean {close[0]}? " if close else ""
    return f"{key}={value}: there is no such choice. {meant}Choices: {', '.join(options)}."
