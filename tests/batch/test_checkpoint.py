"""A job that is begun again gets the answers it had, to the bit, and asks the network only for the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sdsedit.batch.checkpoint import KeptRun, Remembering, forget
from sdsedit.edit import edit
from sdsedit.prior.unet import UNetPrior
from sdsedit.request import Edit, EditConfig
from sdsedit.style import StyleConfig, StyleRequest, Way, style

REQUEST = Edit(target="a cat wearing a crown", source="a cat")


class Counted:
    """A prior that counts what the network is asked."""

    def __init__(self, prior: UNetPrior) -> None:
        self._prior, self.asked = prior, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prior, name)

    def predict(self, *args: Any) -> Any:
        self.asked += 1
        return self._prior.predict(*args)


def picture() -> torch.Tensor:
    return torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", ["lusd", "dds"])
def test_a_run_that_was_cut_off_ends_as_it_would_have(builtin_prior: UNetPrior, tmp_path: Path, method: str):
    config = EditConfig(method=method, steps=8)
    whole = Counted(builtin_prior)
    wanted = edit(picture(), whole, REQUEST, config)  # pyright: ignore[reportArgumentType]

    first = Counted(builtin_prior)
    kept = Remembering(first, tmp_path / "job", "key", every=2)  # pyright: ignore[reportArgumentType]
    cut = edit(picture(), kept, REQUEST, config, lambda step: step.index < 4)  # pyright: ignore[reportArgumentType]
    assert cut.stopped == "cancelled"  # and now the process is killed: nothing is said to `kept`

    second = Counted(builtin_prior)
    again = Remembering(second, tmp_path / "job", "key", every=2)  # pyright: ignore[reportArgumentType]
    result = edit(picture(), again, REQUEST, config)  # pyright: ignore[reportArgumentType]
    assert torch.equal(result.image, wanted.image) and torch.equal(result.heatmap, wanted.heatmap)
    assert 4 <= again.given <= first.asked < again.given + 2  # at most one had not been written
    assert second.asked == whole.asked - again.given
    forget(tmp_path / "job")
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize("spoil", ["another key", "a damaged file", "another seed", "another picture size"])
def test_answers_of_another_run_are_not_used(builtin_prior: UNetPrior, tmp_path: Path, spoil: str):
    config, image = EditConfig(method="lusd", steps=4), picture()
    kept = Remembering(builtin_prior, tmp_path / "job", "key", every=2)
    edit(image, kept, REQUEST, config)  # pyright: ignore[reportArgumentType]
    kept.write()
    key = "key"
    if spoil == "another key":
        key = "other"
    elif spoil == "a damaged file":
        file = tmp_path / "job" / "00000.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
    elif spoil == "another seed":
        config = EditConfig(method="lusd", steps=4, seed=5)
    else:
        image = torch.rand(1, 3, 64, 48)
    again = Remembering(builtin_prior, tmp_path / "job", key, every=2)
    result = edit(image, again, REQUEST, config)  # pyright: ignore[reportArgumentType]
    assert again.given == 0
    assert torch.equal(result.image, edit(image, builtin_prior, REQUEST, config).image)


def test_a_job_that_is_too_large_is_not_kept_and_a_full_disk_ends_only_the_keeping(
    builtin_prior: UNetPrior, tmp_path: Path
):
    config = EditConfig(method="lusd", steps=6)
    small = Remembering(builtin_prior, tmp_path / "small", "key", every=1, max_bytes=100)
    (tmp_path / "file").write_text("in the way of the folder")
    blocked = Remembering(builtin_prior, tmp_path / "file" / "job", "key", every=1)
    wanted = edit(picture(), builtin_prior, REQUEST, config)
    for prior in (small, blocked):
        assert torch.equal(edit(picture(), prior, REQUEST, config).image, wanted.image)  # pyright: ignore[reportArgumentType]
    assert len(list((tmp_path / "small").iterdir())) == 1


def test_what_autograd_goes_through_is_asked_anew(builtin_prior: UNetPrior, tmp_path: Path):
    kept = Remembering(builtin_prior, tmp_path / "job", "key", every=1)
    z = torch.randn(1, 4, 8, 8, requires_grad=True)
    said = kept.predict(z, torch.tensor([0.5]), kept.encode_text(["a cat"]))
    assert said.eps.requires_grad and not (tmp_path / "job").exists()


def test_an_edit_with_a_look_keeps_the_answers_of_its_method_alone(builtin_prior: UNetPrior, tmp_path: Path):
    request = Edit(target=REQUEST.target, source=REQUEST.source, references=(picture(),))
    config = EditConfig(method="lusd", steps=3, refine=0)
    wanted = edit(picture(), builtin_prior, request, config)
    first = Remembering(builtin_prior, tmp_path / "job", "key", every=1)
    edit(picture(), first, request, config, lambda step: step.index < 1)  # pyright: ignore[reportArgumentType]
    again = Remembering(builtin_prior, tmp_path / "job", "key", every=1)
    assert torch.equal(edit(picture(), again, request, config).image, wanted.image)  # pyright: ignore[reportArgumentType]
    assert again.given >= 2


# ---- styles

STYLES = {
    "transfer": ({"content": picture()}, Way(sampled=False, steps=5, step_size=0.05, content_weight=0.25)),
    "texture": ({"texture": (40, 72)}, Way(sampled=False, steps=5, step_size=0.05)),
    "sampled texture": ({"texture": (40, 72)}, Way(sampled=True, steps=5, step_size=0.05, start=0.9, match=True)),
    "words": (
        {"prompt": "a cat"},
        Way(sampled=True, steps=5, step_size=0.05, start=0.9, inner=2, scale=2.0, match=True),
    ),
}


@pytest.mark.parametrize("kind", STYLES)
def test_a_style_that_was_cut_off_ends_as_it_would_have(builtin_prior: UNetPrior, tmp_path: Path, kind: str):
    what, way = STYLES[kind]
    request, config = StyleRequest(references=(picture(),), **what), StyleConfig(way=way, size=32, seed=3)
    wanted = style(builtin_prior, request, config)
    kept, taken = KeptRun(tmp_path / "job", "key", every=2), 0

    def until_the_third(step) -> bool:  # and then the process is killed: the second step is what was written
        kept.step(step.begun, last=False)
        return step.index < 2

    style(builtin_prior, request, config, until_the_third)

    def count(step) -> None:
        nonlocal taken
        taken += 1

    again = KeptRun(tmp_path / "job", "key").read()
    assert again is not None and again.walk.done == 2
    result = style(builtin_prior, request, config, count, again)
    assert torch.equal(result.image, wanted.image) and torch.equal(result.z, wanted.z)
    assert result.history == wanted.history and result.steps_done == 5 and taken == 3 and not result.stopped


def test_a_style_that_was_stopped_or_was_done_goes_on_from_its_last_step(builtin_prior: UNetPrior, tmp_path: Path):
    what, way = STYLES["transfer"]
    request, config = StyleRequest(references=(picture(),), **what), StyleConfig(way=way, size=32)
    wanted = style(builtin_prior, request, config)
    for last in (2, 4):
        kept = KeptRun(tmp_path / str(last), "key")

        def step(step, kept=kept, last=last) -> bool:
            kept.step(step.begun, last=step.index == last)
            return step.index < last

        style(builtin_prior, request, config, step)
        result = style(builtin_prior, request, config, None, kept.read())
        assert torch.equal(result.image, wanted.image) and result.history == wanted.history, last


@pytest.mark.parametrize("spoil", ["another key", "damaged", "cut short", "something else", "nothing"])
def test_what_is_no_run_of_this_job_is_begun_anew(builtin_prior: UNetPrior, tmp_path: Path, spoil: str):
    what, way = STYLES["transfer"]
    request, config = StyleRequest(references=(picture(),), **what), StyleConfig(way=way, size=32, steps=1)
    file = tmp_path / "run.safetensors"
    style(builtin_prior, request, config, lambda step: KeptRun(tmp_path, "key").step(step.begun, last=True))
    assert KeptRun(tmp_path, "key").read() is not None
    if spoil == "damaged":
        file.write_bytes(b"x" + file.read_bytes()[1:])
    elif spoil == "cut short":
        file.write_bytes(file.read_bytes()[:-8])
    elif spoil == "something else":
        save_file({"z": torch.zeros(1)}, file, {"key": "key", "done": "x"})
    elif spoil == "nothing":
        file.unlink()
    assert KeptRun(tmp_path, "other" if spoil == "another key" else "key").read() is None


def test_a_full_disk_ends_no_style(builtin_prior: UNetPrior, tmp_path: Path):
    what, way = STYLES["transfer"]
    request, config = StyleRequest(references=(picture(),), **what), StyleConfig(way=way, size=32, steps=1)
    (tmp_path / "file").write_text("in the way of the folder")
    kept = KeptRun(tmp_path / "file" / "job", "key", every=1)
    assert style(builtin_prior, request, config, lambda step: kept.step(step.begun, last=False)).steps_done == 1
    assert kept.read() is None
