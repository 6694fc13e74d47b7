"""Pictures whose look is taken, without a browser."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from sdsedit.errors import InputRefused
from sdsedit.web import looks
from sdsedit.web.settings import Settings
from tests.web.conftest import ROOT

MOSAIC, DOTS = (ROOT / "assets" / "styles" / f"{name}.png" for name in ("mosaic", "dots"))


def test_files_are_read_in_their_order():
    assert [each.name for each in looks.read([str(MOSAIC), str(DOTS)], 10**7)] == ["mosaic.png", "dots.png"]
    assert looks.read(None, 10**7) == ()
    with pytest.raises(InputRefused, match="At most 1 looks can be mixed here; 2 are given"):
        looks.read([str(MOSAIC), str(DOTS)], 10**7, 1)
    with pytest.raises(InputRefused, match="more than the 0 megapixels"):
        looks.read([str(MOSAIC)], 100)


def test_every_example_is_there_and_has_a_button():
    shown = looks.examples()
    assert [path.stem for path in shown] == list(looks.ORDER)
    page = looks.thumbnails(shown, "Example <looks>")
    assert page.count("<button") == len(shown) and "Example: stained glass" in page and "Example &lt;looks&gt;" in page


@pytest.mark.skipif(find_spec("gradio") is None, reason="the page needs gradio: pip install -e '.[web]'")
def test_what_is_no_picture_is_refused_and_taken_away(tmp_path: Path):
    import gradio as gr

    bad = tmp_path / "notes.png"
    bad.write_text("no picture at all")
    with gr.Blocks():
        row = looks.Looks(Settings(), "looks", 2)
    with pytest.raises(InputRefused, match=r"notes\.png is"):
        row.check("me", [str(MOSAIC), str(bad)])
    assert row.keep_good("me", [str(MOSAIC), str(bad), str(DOTS), str(DOTS)]) == [str(MOSAIC), str(DOTS)]
    assert row.add("me", {"example": 1}, [str(MOSAIC)]) == [str(MOSAIC), str(looks.examples()[1])]
    with pytest.raises(InputRefused, match="At most 2 looks"):
        row.add("me", {"example": 0}, [str(MOSAIC), str(DOTS)])
    for said in ({}, {"example": "0"}, {"example": 99}, {"example": -1}):
        with pytest.raises(InputRefused, match="no such example"):
            row.add("me", said, None)
