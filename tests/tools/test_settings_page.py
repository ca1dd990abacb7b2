"""docs/settings.md shows every key, and is up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfray.config.declared import declared_types
from hfray.tools.settings_page import COMMANDS, settings_page

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == settings_page(), "run `make docs`"


@pytest.mark.parametrize("kind", [kind for _, _, kind, _ in COMMANDS], ids=lambda kind: kind.__name__)
def test_every_key_of_every_command_is_on_the_page(kind):
    page = settings_page()
    sections = {"model", "backend", "device", "prompt", "generation"}
    pools = {"workers.name", *(f"workers.{group}" for group in sections)}
    for key, types in declared_types(kind):
        leaf = not any(isinstance(part, type) and hasattr(part, "__dataclass_fields__") for part in types)
        if (
            leaf
            and not key.startswith("generation")
            and key not in sections | pools
            and not key.startswith(("workers.backend.", "workers.model."))
        ):
            key = key.replace("workers.device.", "device.").replace("prompt.target", "prompt._target_")
            assert f"`{key.removesuffix('.*')}`" in page, key
