"""Edits of scenes: what they are about changes, and every other Gaussian keeps its bits, its row and its properties."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from sdsedit.attention.probe import AttentionMaps, AttentionProbe, SeveralProbes
from sdsedit.camera import Cameras, orbit
from sdsedit.errors import InputRefused
from sdsedit.guidance import DDS, LUSD
from sdsedit.guidance.attention_distillation import Layer, SelfAttention
from sdsedit.io.splats import Splats, read, write
from sdsedit.prior.base import Prediction, Probe, Text
from sdsedit.request import Edit
from sdsedit.splats.change import KINDS, Progress, SplatConfig, SplatResult, _about, _host_word, change, kind_of
from tests.little_scene import BALL, GRASS, little_scene
from tests.sketch.painter import Painter, disc

COLUMNS = ("means", "quats", "log_scales", "logits", "sh")
RED, GREEN, BLUE, YELLOW = (0.8, 0.1, 0.1), (0.3, 0.7, 0.3), (0.1, 0.2, 0.9), (0.95, 0.85, 0.1)
SOURCE = "a ball on grass"
ASKED = {  # an edit of each kind
    "recolour": Edit("a blue ball on grass", SOURCE),
    "restyle": Edit("a blue ball on grass", SOURCE),
    "replace": Edit("a cube on grass", SOURCE),
    "add": Edit("a ball wearing a crown on grass", SOURCE),
    "delete": Edit("grass", SOURCE),
}
QUICK = SplatConfig(method=LUSD(steps=3), steps=3, views=4, added=120, background=(1.0, 1.0, 1.0))


class Seer(Painter):
    """The closed-form prior, told what words look like: it attends to a word where the view has its colour, and what
    it wants is the view that it saw last, with the ball painted as the prompt has it, or a cube in its middle.

    ball: red, or blue; cube: blue; grass: green; crown: yellow, and the upper third of what is red.
    """

    def __init__(self, native: int = 48) -> None:
        super().__init__({}, native)
        self.editing = {"refine": {"steps": 3, "scale": 1.0}}
        self.seen, self.prompts = torch.zeros(1, 3, 1, 1), ("",)

    def encode(self, image: Tensor) -> Tensor:
        self.seen = super().encode(image)
        return self.seen

    def predict(self, z_t: Tensor, t: Tensor, text: Text, probe: Probe | None = None) -> Prediction:
        self.prompts = text.prompts * (len(z_t) // len(text))  # one prompt stands for all rows
        alpha, sigma = (each.view(-1, 1, 1, 1) for each in self.schedule.alpha_sigma(t))
        seen = self.seen.detach()
        seen = seen if len(seen) == len(z_t) else seen[:1].expand_as(z_t)
        mean = torch.stack([self.wanted(z, prompt) for z, prompt in zip(seen, self.prompts, strict=True)])
        eps = sigma * (z_t - alpha * mean) / (alpha**2 * 0.01 + sigma**2)
        if isinstance(probe, SeveralProbes):
            return Prediction(eps, tuple(self._maps(each, z_t) for each in probe.probes))
        return Prediction(eps, None if probe is None else self._maps(cast(AttentionProbe, probe), z_t))

    def wanted(self, z: Tensor, prompt: str) -> Tensor:  # [3, h, w] -> [3, h, w]
        if not prompt:
            return torch.zeros_like(z)
        if "blue" in prompt:
            return torch.lerp(z, latent(BLUE), like(z, RED))
        if "cube" in prompt:
            return torch.lerp(
                z, latent(BLUE), disc(z.shape[-1], (z.shape[-1] / 2, z.shape[-2] / 2), 0.35 * z.shape[-1])
            )
        return torch.lerp(z, latent(YELLOW), top(z)) if "crown" in prompt else z

    def _maps(self, probe: AttentionProbe, z_t: Tensor) -> AttentionMaps:
        seen = self.seen.detach()
        seen = seen if len(seen) == len(z_t) else seen[:1].expand_as(z_t)
        found = []
        for row in range(len(z_t))[probe.rows]:
            prompt, offsets = self.prompts[row], self.tokenize(self.prompts[row]).offsets
            words = [prompt[slice(*offsets[token])] for token in probe.tokens]
            found.append(torch.stack([self.attended(seen[row], word) for word in words]))
        return AttentionMaps(torch.stack(found), None)

    def attended(self, z: Tensor, word: str) -> Tensor:  # [h, w] in 0..1
        look: dict[str, Callable[[], Tensor]] = {
            "ball": lambda: torch.maximum(like(z, RED), like(z, BLUE)),
            "blue": lambda: like(z, RED),  # what is to be blue
            "cube": lambda: like(z, BLUE),
            "grass": lambda: like(z, GREEN),
            "crown": lambda: torch.maximum(like(z, YELLOW), top(z)),
            "scene": lambda: torch.ones_like(z[0]),
        }
        return 0.9 * look.get(word, lambda: torch.zeros_like(z[0]))()


def scene(degree: int = 1, grass: int = 18) -> Splats:
    """The little scene on denser grass, its ball in one piece and the order of its properties a file's own."""
    few = little_scene(degree)
    side = (np.arange(grass) + 0.5) / grass * 2.4 - 1.2
    x, z = (each.ravel() for each in np.meshgrid(side, side))
    more = few.means[BALL : BALL + 1].repeat(len(x), 0)
    more[:] = np.stack([x, np.full(len(x), 0.53), z], 1)
    row = np.full(len(x), BALL)
    at = BALL + GRASS
    columns = {name: np.insert(getattr(few, name), at, getattr(few, name)[row], 0) for name in COLUMNS}
    columns["means"] = np.insert(few.means, at, more, 0)
    count = len(columns["means"])
    extra = {"part": np.insert(few.extra["part"], at, few.extra["part"][row]), "nx": np.arange(count, dtype=np.float32)}
    names = ["part", "x", "y", "z", "nx", "opacity", *(f"scale_{k}" for k in range(3)), *(f"rot_{k}" for k in range(4))]
    order = (*names, *(f"f_dc_{k}" for k in range(3)), *(f"f_rest_{k}" for k in range(3 * ((degree + 1) ** 2 - 1))))
    return Splats(**columns, extra=extra, comments=("a ball on grass", "by hand"), order=order)


def latent(rgb: tuple[float, float, float]) -> Tensor:  # [3, 1, 1]
    return torch.tensor(rgb).view(3, 1, 1) * 2 - 1


def like(z: Tensor, rgb: tuple[float, float, float]) -> Tensor:  # [3, h, w] -> [h, w] in 0..1
    return (1.5 - (z - latent(rgb)).norm(dim=0) / 0.5).clamp(0, 1)


def top(z: Tensor) -> Tensor:  # [3, h, w] -> [h, w]
    """The upper third of what is red, and as much above it."""
    red = like(z, RED) > 0.5
    rows = red.any(1).nonzero()
    if not len(rows):
        return torch.zeros_like(z[0])
    first, last = int(rows[0]), int(rows[-1])
    third = max(1, (last - first + 1) // 3)
    mark = torch.zeros_like(z[0])
    columns = red[first : first + third].any(0)
    mark[max(0, first - third) : first + third, columns] = 1
    return mark


def run(kind: str, on_step: Callable[[Progress], bool | None] | None = None, **settings: object) -> SplatResult:
    config = replace(QUICK, **{"kind": "restyle" if kind == "restyle" else None, **settings})
    return change(scene(), Seer(), ASKED[kind], config, on_step=on_step)


@pytest.fixture(scope="module", params=KINDS)
def edited(request: pytest.FixtureRequest) -> tuple[str, SplatResult, list[Progress]]:
    """An edit of each kind, and what was told on the way."""
    told: list[Progress] = []
    return request.param, run(request.param, on_step=told.append), told


def first_rows(result: SplatResult) -> np.ndarray:  # [M] bool
    """Rows that stand for a row of the source: the first that has it as its parent."""
    first = np.zeros(len(result.parent), bool)
    first[np.unique(result.parent, return_index=True)[1]] = True
    return first & (result.parent >= 0)


def same_bits(a: Splats, b: Splats) -> np.ndarray:  # [N] bool
    pairs = ((getattr(x, name).reshape(len(x), -1) for x in (a, b)) for name in COLUMNS)
    return np.all([(x.view(np.uint32) == y.view(np.uint32)).all(1) for x, y in pairs], axis=0)


def rows(splats: Splats, which: np.ndarray) -> Splats:
    return Splats(*(getattr(splats, name)[which] for name in COLUMNS))


def rgb(splats: Splats) -> np.ndarray:  # [N, 3]
    return 0.5 + 0.28209479177387814 * splats.sh[:, 0]


def check_laws(source: Splats, result: SplatResult, folder: Path) -> None:
    """What holds of every result, finished or not."""
    edited, parent, first = result.splats, result.parent, first_rows(result)
    assert len(edited) == len(parent) == result.kept + result.changed + result.added
    assert result.kept + result.changed + result.removed == len(source) == len(result.weight)
    assert first.sum() == result.kept + result.changed and parent.min() >= -1 and parent.max() < len(source)
    assert (np.diff(parent[first]) > 0).all() and not first[result.kept + result.changed :].any()  # new ones are last
    assert same_bits(rows(edited, first), rows(source, parent[first])).sum() == result.kept
    assert result.max_change_outside == 0
    assert result.weight.min() >= 0 and result.weight.max() <= 1 and result.weight.dtype == np.float32
    assert edited.comments == source.comments and edited.order == source.order and list(edited.extra) == [*source.extra]
    for name, column in source.extra.items():
        values = edited.extra[name]
        assert values.dtype == column.dtype and (values == np.where(parent < 0, 0, column[parent])).all()
    write(folder / "edited.ply", edited)  # what cannot be used is not read again
    again = read(folder / "edited.ply")
    assert (
        same_bits(again, edited).all()
        and again.order == (source.order or again.order)
        and again.comments == source.comments
    )
    assert {"renderer", "model", "rest", "all"} == set(result.seconds) and min(result.seconds.values()) >= 0
    assert sum(result.seconds[name] for name in ("renderer", "model", "rest")) == pytest.approx(result.seconds["all"])


# What changes, and what does not


def test_the_laws_of_every_kind(edited: tuple[str, SplatResult, list[Progress]], tmp_path: Path):
    kind, result, _ = edited
    source = scene()
    check_laws(source, result, tmp_path)
    assert result.kind == kind and result.stopped == "" and result.steps_done == len(result.history)
    assert result.steps_done == (0 if kind == "delete" else 3)
    assert len(result.cameras) == 4 and result.measured == (3,) and isinstance(result.method, LUSD)
    assert result.background_psnr > 60


def test_far_from_the_edit_nothing_moves(edited: tuple[str, SplatResult, list[Progress]]):
    """Hidden Gaussians and grass that lies far from the ball; of the ball's neighbours some may be taken for it."""
    _, result, _ = edited
    source = scene()
    far = (np.hypot(source.means[:, 0], source.means[:, 2]) > 1) | (source.extra["part"] == 2)
    stays = first_rows(result) & far[np.maximum(result.parent, 0)]
    assert stays.sum() == far.sum() > 100
    assert same_bits(rows(result.splats, stays), rows(source, far)).all()


def test_the_words_are_found(edited: tuple[str, SplatResult, list[Progress]]):
    kind, result, _ = edited
    found = result.weight >= QUICK.threshold
    part = scene().extra["part"]
    assert not found[part != 1].any()
    if kind == "add":  # the upper part of what it is put on
        assert 10 < found.sum() < BALL / 2 and scene().means[found, 1].max() < 0.2
    else:
        assert found[part == 1].mean() > 0.95
    assert result.words == {"add": ("crown",), "replace": ("cube",), "delete": ("ball",)}.get(kind, ("blue", "ball"))


@pytest.mark.parametrize("kind", ["recolour", "restyle"])
def test_a_thing_in_its_place_takes_the_new_colour(kind: str):
    source = scene()
    result = run(kind)
    assert result.added == result.removed == 0 and result.changed >= BALL
    ball = source.extra["part"] == 1
    assert np.abs(rgb(source)[ball].mean(0) - RED).max() < 0.05
    assert np.abs(rgb(result.splats)[ball].mean(0) - BLUE).max() < 0.25
    assert (result.splats.logits == source.logits).all()
    for name in ("means", "quats", "log_scales"):
        assert (getattr(result.splats, name) == getattr(source, name)).all() == (kind == "recolour"), name


def test_what_is_replaced_goes_and_something_else_stands_there():
    result = run("replace")
    assert not (result.splats.extra["part"] == 1).any() and result.removed >= BALL
    new = result.parent < 0
    raised = new & (result.splats.means[:, 1] < 0.45)
    assert raised.sum() > 10 and np.linalg.norm(result.splats.means[raised], axis=1).max() < 1.2
    colour = rgb(result.splats)[raised].mean(0)
    assert colour[2] > colour[0] + 0.2  # blue, where red was


def test_what_is_added_leaves_everything_else():
    source = scene()
    result = run("add")
    assert result.kept == len(source) and 10 < result.added <= QUICK.added and result.changed == result.removed == 0
    assert (result.parent[len(source) :] == -1).all()
    new = rows(result.splats, result.parent < 0)
    assert np.median(new.means[:, 1]) < 0 and np.linalg.norm(new.means, axis=1).max() < 1.5  # on top: up is -y
    assert (rgb(new).mean(0)[:2] > rgb(new).mean(0)[2]).all()  # yellow


def test_what_is_deleted_leaves_the_ground_whole():
    source = scene()
    result = run("delete")
    assert not (result.splats.extra["part"] == 1).any() or result.splats.means[:, 1].max() < 1
    left = result.splats.logits > -5
    assert result.splats.means[left, 1].min() > 0.4  # nothing stands any more
    new = rows(result.splats, result.parent < 0)
    assert np.abs(rgb(new) - GREEN).max() < 0.1  # the hole is closed with grass
    assert result.steps_done == 0 and len(result.history) == 0
    assert any("Words were only taken out" in note for note in result.notes)
    assert source.extra["part"].sum() > result.splats.extra["part"].sum()


def test_a_longer_edit_grows_and_keeps_the_laws(tmp_path: Path):
    """Children of a Gaussian come last and inherit nothing but its row, or are new."""
    result = run("replace", steps=30, size=32)
    check_laws(scene(), result, tmp_path)
    assert result.steps_done == 30


def test_with_a_network(builtin_prior, tmp_path: Path):
    """Random weights of the built-in shape: what they find is nonsense, and the laws hold. One seed is one result."""
    source = little_scene(degree=1)
    request = Edit("a cat wearing a crown", "a cat")
    config = replace(QUICK, kind="restyle", method=LUSD(steps=2), steps=2, size=64)
    one, two = (change(source, builtin_prior, request, config) for _ in range(2))
    check_laws(source, one, tmp_path)
    assert one.changed > 0 and one.cameras.width == one.cameras.height == 64
    assert same_bits(one.splats, two.splats).all() and (one.weight == two.weight).all()


@pytest.mark.parametrize("kind", ["recolour", "add"])
def test_one_seed_is_one_scene_and_two_are_two(kind: str):
    one, again, other = (run(kind, seed=seed) for seed in (3, 3, 4))
    assert len(one.splats) == len(again.splats) and same_bits(one.splats, again.splats).all()
    assert (one.parent == again.parent).all() and (one.weight == again.weight).all() and one.history == again.history
    assert len(one.splats) != len(other.splats) or not same_bits(one.splats, other.splats).all()


def test_where_nothing_is_to_change_nothing_does():
    """The model wants under both prompts what is there; it is drawn again, coarsely, in the same colours."""
    same = Edit("a nice ball on grass", SOURCE)
    result = change(scene(), Seer(), same, replace(QUICK, kind="recolour", distillation=0.0))
    ball = scene().extra["part"] == 1
    assert np.abs(rgb(result.splats)[ball].mean(0) - rgb(scene())[ball].mean(0)).max() < 0.25  # red is told by red
    assert result.added == result.removed == 0 and result.max_change_outside == 0


def test_what_is_found_everywhere_may_all_change():
    everywhere = Edit("a blue ball in a scene", "a ball in a scene", words=("scene",))
    result = change(bare(), Seer(), everywhere, replace(QUICK, kind="restyle", steps=1))
    assert result.kept < 0.2 * len(bare()) and result.removed == result.added == 0
    assert any("found everywhere" in note for note in result.notes)


def bare() -> Splats:
    """The scene without what nobody sees."""
    full = scene()
    return rows(full, full.extra["part"] != 2)


@pytest.mark.parametrize("kind", ["recolour", "add"])
def test_any_method_edits_what_the_words_say(kind: str):
    """The place is found before the method begins, so it does not matter that most methods find none."""
    result = run(kind, method=DDS(steps=2), steps=2)
    assert result.kind == kind and isinstance(result.method, DDS) and result.stopped == ""
    assert result.words == {"add": ("crown",)}.get(kind, ("blue", "ball"))
    assert (result.changed >= BALL) if kind == "recolour" else result.added > 10


# The look of references


class Looker(Seer):
    """It has one self-attention layer too, in which a cell is its own query, key and value."""

    def predict(self, z_t: Tensor, t: Tensor, text: Text, probe: Probe | None = None) -> Prediction:
        if not isinstance(probe, SelfAttention):
            return super().predict(z_t, t, text, probe)
        cells = z_t.flatten(2).mT[:, None]  # [B, 1, h w, 3]
        out = torch.nn.functional.scaled_dot_product_attention(cells, cells, cells)
        layer = Layer(cells, cells, cells, out, cells.shape[-1] ** -0.5, (z_t.shape[-2], z_t.shape[-1]))
        return Prediction(z_t, (layer,))  # pyright: ignore[reportArgumentType]  # as SelfAttention.collect gives it


PURPLE = torch.tensor([0.5, 0.0, 0.6]).view(1, 3, 1, 1).expand(1, 3, 48, 48).contiguous()


def looked(kind: str, weight: float = 1.0, references: tuple[Tensor, ...] = (PURPLE,)) -> SplatResult:
    config = replace(QUICK, kind="restyle" if kind == "restyle" else None, style_weight=weight)
    return change(scene(), Looker(), replace(ASKED[kind], references=references), config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_look_keeps_the_laws_of_every_kind(kind: str, tmp_path: Path):
    """And without one, or with a weight of 0, an edit is bit for bit what it was."""
    plain, none, some = looked(kind, references=()), looked(kind, 0.0), looked(kind)
    for one, other in ((plain, none), *([(plain, some)] if kind == "delete" else [])):
        assert same_bits(one.splats, other.splats).all() and (one.parent == other.parent).all()
        assert one.history == other.history
    check_laws(scene(), some, tmp_path)
    far = (np.hypot(scene().means[:, 0], scene().means[:, 2]) > 1) | (scene().extra["part"] == 2)
    stays = first_rows(some) & far[np.maximum(some.parent, 0)]
    assert same_bits(rows(some.splats, stays), rows(scene(), far)).all()
    note = "What is taken out has no look: the references are not used."
    assert (note in some.notes) == (kind == "delete") and note not in none.notes
    if kind == "delete":
        return
    mine = some.parent < 0 if kind in ("add", "replace") else some.splats.extra["part"] == 1
    theirs = plain.parent < 0 if kind in ("add", "replace") else plain.splats.extra["part"] == 1
    purple = PURPLE[0, :, 0, 0].numpy()
    nearer = [np.abs(rgb(each.splats)[which].mean(0) - purple).sum() for each, which in ((some, mine), (plain, theirs))]
    assert nearer[0] < nearer[1] - 0.02


def test_a_look_without_words_is_of_the_whole_scene():
    """The prompts say the same, so that nothing but the references says what is to change."""
    same = Edit(SOURCE, SOURCE, references=(PURPLE,))
    result = change(scene(), Looker(), same, QUICK)
    part = scene().extra["part"]
    assert result.kind == "restyle" and result.words == () and result.added == result.removed == 0
    assert result.weight[part == 2].max() == 0 and (result.weight > 0).sum() > 0.7 * (part != 2).sum()
    assert result.changed > 0.7 * (part != 2).sum() and result.max_change_outside == 0
    assert same_bits(result.splats, scene())[part == 2].all()
    assert not any("found everywhere" in note for note in result.notes)


# On the way


def test_progress_is_told(edited: tuple[str, SplatResult, list[Progress]]):
    kind, _, told = edited
    totals, stages = {each.total for each in told}, [each.stage for each in told]
    assert len(totals) == 1 and all(0 <= each.index < each.total for each in told)
    assert told[-1].index == told[-1].total - 1
    order = ["looking", "found"] if kind == "delete" else ["looking", "found", "imagining", "changing"]
    assert list(dict.fromkeys(stages)) == order and stages.count("found") == 1
    assert stages.count("changing") == (0 if kind == "delete" else 3)
    one_by_one = 3 if kind in ("replace", "add") else 0
    together = 16 if kind in ("recolour", "restyle", "replace") else 0
    assert stages.count("imagining") == one_by_one + together
    assert told[0].weight is None
    after = told[stages.index("found") :]
    indices = [each.index for each in (after if kind in ("replace", "add") else told)]
    assert all(a < b for a, b in itertools.pairwise(indices))
    for each in after:
        weight = each.weight
        assert weight is not None and weight.shape == (len(scene()),) and weight.min() >= 0 and weight.max() <= 1
        assert (each.stats != {}) == (each.stage == "changing")


def test_previews_are_pictures():
    shown: dict[str, Tensor] = {}
    run("recolour", on_step=lambda step: shown.update({step.stage: step.preview()}))
    assert list(shown) == ["looking", "found", "imagining", "changing"]
    for picture in shown.values():
        assert picture.shape == (1, 3, 48, 48) and picture.min() >= 0 and picture.max() <= 1 and picture.std() > 0.05
    assert torch.equal(shown["looking"], shown["found"]) and not torch.equal(shown["found"], shown["changing"])


@pytest.mark.parametrize(
    ("kind", "stage"),
    [
        ("recolour", "looking"), ("replace", "looking"), ("delete", "looking"),
        ("recolour", "found"), ("add", "found"),
        ("recolour", "imagining"), ("replace", "imagining"), ("add", "imagining"),
        ("restyle", "changing"), ("replace", "changing"), ("add", "changing"),
    ],
)  # fmt: skip
def test_a_run_may_be_stopped_at_any_stage(kind: str, stage: str, tmp_path: Path):
    told: list[str] = []

    def on_step(step: Progress) -> bool:
        told.append(step.stage)
        return step.stage != stage

    result = run(kind, on_step=on_step)
    assert result.stopped == "cancelled" and told.count(stage) == 1 and told[-1] == stage
    check_laws(scene(), result, tmp_path)
    assert result.steps_done == (1 if stage == "changing" else 0)
    if stage in ("looking", "found"):
        assert same_bits(result.splats, scene()).all() and result.kept == len(scene())
        assert "The edit was stopped before it changed anything." in result.notes
    elif stage == "imagining" and kind != "replace":
        assert result.kept == len(scene()) and "The edit changed nothing." in result.notes


def test_the_last_step_stops_nothing():
    """Who says stop when all is done is told that it is done."""
    result = run("recolour", on_step=lambda step: step.index + 1 < step.total)
    assert result.stopped == "" and result.steps_done == 3


# Cameras


def test_cameras_of_other_proportions_are_resized():
    cameras = orbit((0, 0, 0), 3.5, (10.0, 30.0), 9, 64, 48)
    result = change(scene(), Seer(), ASKED["recolour"], replace(QUICK, steps=1), cameras)
    assert (result.cameras.width, result.cameras.height) == (56, 40)  # 4 pixels are a multiple, 48 x 48 the model's own
    assert torch.equal(result.cameras.viewmats, cameras.viewmats[[0, 2, 4, 6]])  # of nine, four at even distances
    assert torch.allclose(
        result.cameras.Ks[0].diagonal(), cameras.Ks[0].diagonal() * torch.tensor([56 / 64, 40 / 48, 1])
    )
    assert result.changed >= BALL and result.stopped == "" and result.max_change_outside == 0


def test_eight_views_of_which_two_are_measured_with():
    result = run("recolour", views=8, steps=1, size=32)
    assert len(result.cameras) == 8 and result.measured == (3, 7) and result.cameras.width == 32


# Words


@pytest.mark.parametrize(
    ("source", "target", "kind"),
    [
        ("a ball on grass", "a blue ball on grass", "recolour"),
        ("a red ball on grass", "a blue ball on grass", "recolour"),
        ("a ball on grass", "a cube on grass", "replace"),
        ("a ball on grass", "a ball on sand", "replace"),
        ("an apple", "an apple wearing a crown", "add"),
        ("an apple, a pear", "an apple, a pear and a cup", "add"),
        ("an apple, a pear and a cup", "an apple and a cup", "delete"),
        ("an apple wearing a crown", "an apple", "delete"),
        ("a red ball on grass", "a ball on grass", "delete"),
        ("a ball on grass", "a ball on grass", "restyle"),
        (None, "a ball", "add"),
        (" ", "a ball", "add"),
    ],
)
def test_what_an_edit_is(source: str | None, target: str, kind: str):
    assert kind_of(Seer(), Edit(target, source)) == kind


APPLE = "an apple, a pear and a cup on a wooden table"


@pytest.mark.parametrize(
    ("kind", "source", "target", "near_source", "near_target"),
    [
        ("add", APPLE, "an apple wearing a crown, a pear and a cup on a wooden table",
         "an apple on a wooden table", "an apple wearing a crown on a wooden table"),
        ("recolour", APPLE, "an apple, a blue pear and a cup on a wooden table",
         "a pear on a wooden table", "a blue pear on a wooden table"),
        ("replace", APPLE, "an apple, a pear and a vase on a wooden table",
         "a cup on a wooden table", "a vase on a wooden table"),
        ("delete", APPLE, "an apple and a cup on a wooden table",
         APPLE, "an apple and a cup on a wooden table"),
        ("restyle", APPLE, APPLE, APPLE, APPLE),
        ("add", None, "an apple, a pear", None, "an apple, a pear"),
    ],
)  # fmt: skip
def test_a_close_view_is_told_of_its_own_thing(
    kind: str, source: str | None, target: str, near_source: str | None, near_target: str
):
    near = _about(Seer(), Edit(target, source, words=("apple",), negative="fog"), kind)  # pyright: ignore[reportArgumentType]
    assert near == Edit(near_target, near_source, None, negative="fog")


@pytest.mark.parametrize(
    ("source", "target", "host"),
    [
        ("an apple, a pear", "an apple wearing a crown, a pear", "apple"),
        ("an apple and a pear", "an apple and a pear wearing a top hat", "pear"),
        ("a red apple", "a red apple with a crown", "apple"),
        ("an apple", "an apple and a pear", None),
        ("an apple", "an apple, a pear", None),
        ("an apple", "a crown on an apple", None),
        ("an apple", "an apple", None),
        (None, "an apple wearing a crown", None),
    ],
)
def test_the_thing_that_new_words_belong_to(source: str | None, target: str, host: str | None):
    assert _host_word(Seer(), Edit(target, source)) == host


# Refusals: one sentence


def refused(request: Edit, cameras: Cameras | None = None, splats: Splats | None = None, **settings: object) -> str:
    with pytest.raises(InputRefused) as caught:
        change(splats or scene(), Seer(), request, replace(QUICK, **settings), cameras)
    said = str(caught.value)
    assert said.endswith(".") and "\n" not in said and len(said) < 300
    return said


@pytest.mark.parametrize(
    ("request_", "settings", "sentence"),
    [
        (Edit("  ", SOURCE), {}, "The target prompt is empty"),
        (Edit("a cat", "a\ndog"), {}, "The source prompt has the control character"),
        (Edit("a cat", mask=torch.ones(1, 1, 8, 8)), {}, "A scene takes no mask picture; name the words to look for."),
        (
            ASKED["add"],
            {"kind": "magic"},
            "kind is 'magic'; it must be one of recolour, restyle, replace, add, delete.",
        ),
        (ASKED["add"], {"method": "magic"}, "method is 'magic'"),
        (ASKED["add"], {"views": 3}, "views is 3; it must be a whole number from 4 to 256."),
        (ASKED["add"], {"views": 4.0}, "views is 4.0; it must be a whole number"),
        (ASKED["add"], {"steps": 0}, "steps is 0; it must be a whole number from 1 to 10000."),
        (ASKED["add"], {"seed": -1}, "seed is -1; it must be a whole number"),
        (ASKED["add"], {"threshold": 0.0}, "threshold is 0.0; it must be a number from 0.05 to 0.95."),
        (ASKED["add"], {"distillation": math.nan}, "distillation is nan; it must be a number from 0 to 1."),
        (ASKED["add"], {"style_weight": 10.5}, "style_weight is 10.5; it must be a number from 0 to 10"),
        (replace(ASKED["add"], references=(PURPLE,) * 9), {}, "A style takes at most 8 references; 9 are given."),
        (replace(ASKED["add"], references=(2 * PURPLE,)), {}, "The picture's values must be numbers from 0 to 1."),
        (Edit(SOURCE, SOURCE, references=(PURPLE,)), {"style_weight": 0}, "The prompts name nothing to look for"),
        (ASKED["add"], {"added": 0}, "added is 0; it must be a whole number from 1 to 200000."),
        (ASKED["add"], {"background": (0.0, 0.0, 1.5)}, "background is 1.5; it must be a number from 0 to 1."),
        (ASKED["add"], {"up": (0.0, 0.0, 0.0)}, "up is 0, 0, 0; it must be a direction."),
        (ASKED["add"], {"up": (0.0, math.inf, 0.0)}, "up is inf; it must be a number from -1 to 1."),
        (Edit(SOURCE, SOURCE), {}, "The prompts name nothing to look for in the scene"),
        (Edit("a blue ball", "a ball", words=("cat",)), {}, "'cat' is not in the prompt"),
        (ASKED["add"], {"kind": "delete"}, "Nothing can be deleted: the target prompt has no word less"),
        (Edit("a ball on grass and a unicorn", SOURCE), {}, "The model's attention found none of these words"),
        (Edit("a cone on grass", SOURCE), {}, "The edited views do not agree on what should come"),
    ],
)
def test_refusals(request_: Edit, settings: dict[str, object], sentence: str):
    assert sentence in refused(request_, **settings)


def test_not_everything_is_deleted():
    everywhere = Edit("a ball on grass", "a scene", words=("scene",))
    assert "nothing would be left" in refused(everywhere, splats=bare(), kind="delete")


def test_cameras_that_cannot_be_used():
    few = orbit((0, 0, 0), 3.0, 15.0, 3, 64, 48)
    assert refused(ASKED["add"], few).startswith("There are 3 cameras: at least 4 are needed")
    away = orbit((900, 900, 0), 3.0, 15.0, 8, 64, 48)
    assert refused(ASKED["add"], away).startswith("The cameras see nothing of the scene")
