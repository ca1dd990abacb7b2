"""The Markdown pages: links, named paths, Python blocks, and the length of the README."""

from __future__ import annotations

import ast

import pytest

from tests.docs.markdown import LINK, PAGES, PATH_IN_CODE, ROOT, anchors, blocks

IDS = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_link_targets_exist(page):
    for match in LINK.finditer(page.read_text()):
        target, _, anchor = match["target"].partition("#")
        if target.startswith(("http:", "https:")):
            continue
        other = (page.parent / target).resolve() if target else page
        assert other.exists(), match["target"]
        if anchor:
            assert anchor in anchors(other), match["target"]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_named_paths_exist(page):
    for match in PATH_IN_CODE.finditer(page.read_text()):
        assert (ROOT / match["path"]).exists(), match["path"]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_blocks_import_public_names(page):
    import hfray

    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and node.module == "hfray":
                assert {alias.name for alias in node.names} <= set(hfray.__all__)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert (ROOT / "docs" / "report.png").stat().st_size < 200_000
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in (ROOT / "README.md").read_text(), page.name
