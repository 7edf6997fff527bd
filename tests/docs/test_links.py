"""Relative links lead somewhere, anchors included."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, anchors, documents, links


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path: Path) -> None:
    broken = [target for target in links(path) if not _exists(path, target)]
    assert broken == []


def test_readme_links_to_every_document() -> None:
    targets = {(ROOT / target.partition("#")[0]).resolve() for target in links(ROOT / "README.md")}
    missing = [path.relative_to(ROOT) for path in documents() if path.name != "README.md" and path not in targets]
    assert missing == []


def _exists(path: Path, target: str) -> bool:
    if target.startswith(("https://", "http://")):
        return True
    name, _, anchor = target.partition("#")
    page = (path.parent / name).resolve() if name else path
    if not page.exists() or not page.is_relative_to(ROOT):
        return False
    return not anchor or page.suffix != ".md" or anchor in anchors(page)
