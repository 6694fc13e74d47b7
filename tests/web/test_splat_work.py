"""What the Splats tab does, without a browser, on a little scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdsedit.errors import InputRefused
from sdsedit.io import splats
from sdsedit.io.images import Picture
from sdsedit.io.record import read_recipe
from sdsedit.prior import UNetPrior
from sdsedit.web import splat_work as work
from sdsedit.web.splat_work import Edited, Place, SceneDesk, SceneFile, SceneOrder, SceneTable
from sdsedit.web.worker import Cancelled
from tests.little_scene import little_scene
from tests.splats.test_change import Seer

MODEL = {"id": "tiny", "revision": None, "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> SceneFile:
    path = tmp_path_factory.mktemp("scenes") / "garden.ply"
    splats.write(path, little_scene())
    return work.read_scene(path, 2**25)


def order(scene: SceneFile, **given: object) -> SceneOrder:
    usual = {"source": "a ball on grass", "target": "a blue ball on grass", "words": None, "kind": "", "strength": 1.0,
             "steps": 2, "views": 4.0, "threshold": 0.4, "seed": 0}  # fmt: skip
    return work.scene_order(scene, **{**usual, **given})  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def told() -> list[Any]:
    return []


@pytest.fixture(scope="module")
def edited(scene: SceneFile, told: list[Any]) -> Edited:
    return work.run(Seer(), order(scene), MODEL, told.append, lambda: True)


def test_a_scene_is_changed_and_the_rest_keeps_its_bits(edited: Edited, scene: SceneFile, tmp_path: Path):
    (tmp_path / "a.ply").write_bytes(work.scene_bytes(edited, ".ply"))
    after = splats.read(tmp_path / "a.ply")
    assert read_recipe(tmp_path / "a.ply")["target"] == "a blue ball on grass"
    same = (after.sh == scene.splats.sh).all((1, 2))
    assert same.sum() == edited.result.kept and 0 < edited.result.changed < len(after)
    assert edited.lines[0].endswith(f"{edited.result.changed:,} changed.")
    assert edited.name(".spz") == "garden-edited.spz"
    (tmp_path / "a.spz").write_bytes(work.scene_bytes(edited, ".spz"))
    assert len(splats.read(tmp_path / "a.spz")) == len(after)


def test_progress_tells_what_is_done_and_then_where(
    edited: Edited, told: list[tuple[str, work.Progress, Place | None]]
):
    said = list(dict.fromkeys(each[0] for each in told))
    assert said[0] == "Looking for the words in every view" and said[-1] == "Changing the scene"
    places = [each[2] is not None for each in told]
    assert places == sorted(places) and not places[0] and places[-1]
    done = [each[1].done for each in told]
    assert done == sorted(done) and told[-1][1].done == told[-1][1].total
    assert all(each[1].preview is not None and each[1].preview.ndim == 3 for each in told)


def test_where_words_are(scene: SceneFile):
    place = work.find(Seer(), order(scene, words=["ball"]), lambda report: None, lambda: True)
    inside = place.weight >= place.threshold
    assert place.words == ("ball",) and 0 < inside.mean() < 0.7
    assert "\u201cball\u201d" in work.found_line(place)
    assert "nothing would change" in work.found_line(Place(np.zeros(5), ("hat",), 0.4))


def test_stopping(scene: SceneFile):
    with pytest.raises(Cancelled):
        work.run(Seer(), order(scene), MODEL, lambda report: None, lambda: False)
    with pytest.raises(Cancelled):
        work.find(Seer(), order(scene), lambda report: None, lambda: False)
    made = work.run(Seer(), order(scene), MODEL, lambda report: None, lambda: True, stop_after=1)
    assert made.result.steps_done == 1 and "Stopped after 1 steps; this is what was there." in made.lines


def test_what_the_viewer_is_sent(edited: Edited, scene: SceneFile):
    count = len(scene.splats)
    weight = np.linspace(0, 1, count)
    data = work.packed(scene.splats, weight)
    assert len(data) == 33 * count and data[: 32 * count] == splats.encode(scene.splats, "a.splat")
    assert list(data[32 * count :]) == [round(255 * w) for w in weight.tolist()]
    assert set(work.packed(scene.splats)[32 * count :]) == {0}
    after = work.weight_after(edited)
    assert after.shape == (len(edited.result.splats),) and after.max() <= 1
    assert (after[edited.result.parent < 0] == 1).all()


def test_the_viewer_stands_in_front_of_the_middle(scene: SceneFile):
    camera = work.camera(scene)
    eye, centre, up = (np.array(camera[name]) for name in ("eye", "centre", "up"))
    low, high = scene.splats.means.min(0), scene.splats.means.max(0)
    assert (centre > low).all() and (centre < high).all()
    away = eye - centre
    assert np.degrees(np.arcsin(away @ up / np.linalg.norm(away))) == pytest.approx(20, abs=0.5)
    assert np.linalg.norm(away) > np.linalg.norm(high - low) / 2


def test_a_scene_takes_a_look(builtin_prior: UNetPrior, scene: SceneFile):
    """Its recipe and its repetition know the look; where no word is new, a restyling needs nothing else."""
    look = Picture("dots.png", "0" * 64, "PNG", np.full((32, 40, 3), (200, 40, 90), np.uint8), None, None, ())
    same = "a ball on grass"
    wanted = order(scene, source=same, target=same, kind="restyle", steps=1, references=(look,), style_weight=2.0)
    made = work.run(builtin_prior, wanted, MODEL, lambda report: None, lambda: True)
    assert made.result.changed and made.recipe["references"][0]["name"] == "dots.png"
    again = work.order_of(made.recipe, scene, (look,))
    assert again.config.style_weight == 2.0 and (again.request.references[0] == wanted.request.references[0]).all()
    with pytest.raises(InputRefused, match="style_weight is 11"):
        order(scene, references=(look,), style_weight=11.0)


def test_the_same_again_and_on(edited: Edited, scene: SceneFile, tmp_path: Path):
    again = work.order_of(edited.recipe, scene)
    assert again.request == edited.order.request and again.config.steps == 2 and again.config.views == 4
    with pytest.raises(InputRefused, match="not in the history"):
        work.order_of(edited.recipe, None)
    path = tmp_path / "garden-edited.ply"
    path.write_bytes(work.scene_bytes(edited, ".ply"))
    onwards = work.continued(edited, path)
    assert onwards.name == "garden-edited.ply" and onwards.up == scene.up
    assert work.read_scene(path, 2**25).sha256 == onwards.sha256
    assert work.picture(onwards.splats, scene, 32).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"target": " "}, "target prompt is empty"),
        ({"kind": "melt"}, "must be one of recolour"),
        ({"views": 2}, "views is 2"),
        ({"steps": 10_000}, "at most 600 are run"),
        ({"threshold": 2}, "threshold is 2"),
        ({"strength": float("nan")}, "strength is"),
        ({"seed": 1.5}, "seed is 1.5"),
    ],
)
def test_refused(scene: SceneFile, given: dict[str, object], sentence: str):
    with pytest.raises(InputRefused, match=sentence):
        order(scene, **given)


def test_files_that_are_no_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "bad.ply").write_bytes(b"ply\nformat ascii 1.0\nend_header\n")
    for path, sentence in (("", "no scene yet"), (tmp_path / "bad.ply", "bad.ply")):
        with pytest.raises(InputRefused, match=sentence):
            work.read_scene(path, 2**25)
    splats.write(tmp_path / "many.ply", little_scene())
    monkeypatch.setattr(work, "MAX_GAUSSIANS", 10)
    with pytest.raises(InputRefused, match=r"more than the 10 that this page takes"):
        work.read_scene(tmp_path / "many.ply", 2**25)


def test_undo(scene: SceneFile):
    desk = SceneDesk()
    desk.put(SceneTable(scene))
    desk.put(SceneTable(scene, "a"))
    desk.undo()
    assert desk.table.source == ""
    with pytest.raises(InputRefused, match="nothing to undo"):
        desk.undo()
