"""The sheet opens from the disk, shows what went wrong first, and trusts nothing that a manifest says."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from sdsedit.batch import sheet
from sdsedit.batch.inputs import Planned
from sdsedit.batch.store import Store


def test_pages_of_a_long_batch(
    tmp_path: Path, here: Path, planned: Callable[..., list[Planned]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sheet, "PER_PAGE", 3)
    (tmp_path / "sheet-9.html").write_text("of an older, longer batch")
    with Store(tmp_path / "_batch" / "store.sqlite") as store:
        store.plan(planned(7))
        for _ in range(2):
            (claimed,) = store.claim("w")
            store.done(claimed.n, "w", {claimed.job.output: "f"}, {"kept": 0.25, "words": ["crown"], "notes": []}, 2.5)
        (claimed,) = store.claim("w")
        store.failed(claimed.n, "w", "It <i>cannot</i> be.")
        thumbs = tmp_path / "_batch" / "thumbs"
        thumbs.mkdir()
        (thumbs / "job-0.after.jpg").write_bytes(b"x")
        store.remember("root", str(here))
        first = sheet.write_sheet(store, tmp_path, "Batch")
    assert sorted(path.name for path in tmp_path.glob("*.html")) == ["sheet-2.html", "sheet-3.html", "sheet.html"]
    text = first.read_text("utf-8")
    assert text.index("job-2") < text.index("job-0") and "It &lt;i&gt;cannot&lt;/i&gt; be." in text
    assert "7 jobs: 4 waiting, 2 done, 1 failed." in text and "25.0 % of the pixels" in text and "2.5 s" in text
    assert "<b>Made</b>" in text and "<b>Asked</b>" in text and 'href="#what-went-wrong"' in text
    with Image.open(thumbs / "job-2.before.jpg") as before:  # what was to be edited is shown, though nothing came of it
        assert before.size == (48, 32)
    links = re.findall(r'(?:href|src)="([^"]+)"', text)
    assert links and all(not link.startswith(("/", "http")) for link in links)
    assert (tmp_path / unquote(next(link for link in links if link.endswith(".jpg")))).is_file()
    for page in tmp_path.glob("*.html"):
        _balanced(page.read_text("utf-8"))


def _balanced(text: str) -> None:
    class Tags(HTMLParser):
        opened: list[str]

        def handle_starttag(self, tag: str, attrs: object) -> None:
            assert tag not in ("script", "iframe", "object")
            if tag not in ("meta", "img"):
                self.opened.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.opened.pop() == tag

    tags = Tags()
    tags.opened = []
    tags.feed(text)
    assert not tags.opened
