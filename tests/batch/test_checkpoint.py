"""A job that is begun again gets the answers it had, to the bit, and asks the network only for the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sdsedit.batch.checkpoint import Remembering
from sdsedit.edit import edit
from sdsedit.prior.unet import UNetPrior
from sdsedit.request import Edit, EditConfig

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
    again.forget()
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
