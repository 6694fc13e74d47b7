"""memory: what memory is too small for is asked again in smaller pieces; the edit goes on, and the next one is as ever.

There is no GPU to fill here, so most errors are injected, at the place where a real one would come from: a hook of the
real network raises torch.OutOfMemoryError where more than so much reaches it. The last test fills a real GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from sdsedit import cli, errors
from sdsedit.attention.probe import AttentionProbe, SeveralProbes
from sdsedit.edit import EditResult, edit
from sdsedit.errors import OutOfMemory, out_of_memory
from sdsedit.io.images import read_picture
from sdsedit.memory import Sparing
from sdsedit.metrics import psnr
from sdsedit.prior import UNetPrior, load_prior
from sdsedit.prior.base import Prior
from sdsedit.request import Edit, EditConfig

EXAMPLE = Path(__file__).resolve().parents[1] / "assets" / "examples" / "cat.png"
TOLERANCE = 1e-4  # of a picture's 0..1, between a batch taken whole and in parts


@contextmanager
def cap(network: nn.Module, fits: Callable[[Tensor], bool]) -> Iterator[list[int]]:
    """Memory in which only inputs that `fits` allows have room; the numbers of rows that were asked for."""
    asked: list[int] = []

    def refuse(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        asked.append(inputs[0].shape[0])
        if not fits(inputs[0]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = network.register_forward_pre_hook(refuse)
    try:
        yield asked
    finally:
        handle.remove()


def run(prior: UNetPrior, **config: Any) -> EditResult:
    image = torch.rand(1, 3, 80, 100, generator=torch.Generator().manual_seed(3))
    request = Edit(target="a cat wearing a crown", source="a cat")
    return edit(image, prior, request, EditConfig(**{"steps": 3, "refine": 0.5, **config}))


@pytest.fixture(scope="module")
def whole(builtin_prior: UNetPrior) -> EditResult:
    return run(builtin_prior)


def test_a_batch_that_does_not_fit_goes_in_parts_with_the_same_result(builtin_prior: UNetPrior, whole: EditResult):
    with cap(builtin_prior.unet, lambda x: x.shape[0] <= 1) as asked:
        found = run(builtin_prior)
    assert asked[:4] == [2, 2, 1, 1], "as it is, again after giving memory back, then in halves"
    assert set(asked[4:]) == {1}, "what helped stays: no further pass is tried whole"
    assert (found.image - whole.image).abs().max() <= TOLERANCE
    assert (found.heatmap - whole.heatmap).abs().max() <= 1e-3
    assert found.notes == (*whole.notes, "Memory ran short: batches went through the model in parts of 1.")
    assert torch.equal(run(builtin_prior).image, whole.image), "the next job is as ever"


def test_memory_that_ran_out_once_changes_nothing(builtin_prior: UNetPrior, whole: EditResult):
    left = [True, True, False]  # the third pass of the network fails, once
    with cap(builtin_prior.unet, lambda x: left.pop(0) if left else True):
        found = run(builtin_prior)
    assert torch.equal(found.image, whole.image) and torch.equal(found.z, whole.z)
    (note,) = set(found.notes) - set(whole.notes)
    assert "given back" in note and found.steps_done == whole.steps_done


def test_an_autoencoder_that_does_not_fit_works_in_tiles(builtin_prior: UNetPrior, whole: EditResult):
    vae: Any = builtin_prior.vae
    before = (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size)
    with cap(vae.decoder, lambda x: x.shape[-2] * x.shape[-1] <= 20 * 20):
        found = run(builtin_prior)
    (note,) = set(found.notes) - set(whole.notes)
    assert "tiles of 72 pixels" in note  # half of the working picture's 144, its longer side
    assert torch.equal(found.z, whole.z), "it is the decoding that has seams, not the edit"
    source = torch.rand(1, 3, 80, 100, generator=torch.Generator().manual_seed(3))
    kept = (found.mask == 0).expand_as(source)
    assert kept.any() and torch.equal(found.image[kept], source[kept])
    assert (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size) == before
    assert torch.equal(run(builtin_prior).image, whole.image)


def test_a_picture_in_tiles_is_the_same_picture():
    prior = load_prior("builtin", device="cpu")
    vae: Any = prior.vae
    image = read_picture(EXAMPLE).tensor()
    with torch.no_grad(), Sparing(prior) as sparing:
        with cap(vae.encoder, lambda x: x.shape[-1] <= 64), cap(vae.decoder, lambda x: x.shape[-1] <= 16):
            z = sparing.encode(image)
            found = sparing.decode(z)
        assert sparing.notes == (
            "Memory ran short: the autoencoder worked in tiles of 64 pixels, whose seams are blended.",
        )
    with torch.no_grad():
        wanted = prior.decode(prior.encode(image))
    assert psnr(found, wanted) > 30


def test_where_nothing_helps_one_sentence_says_what_was_tried(builtin_prior: UNetPrior, whole: EditResult):
    for network in (builtin_prior.unet, cast(Any, builtin_prior.vae).decoder):
        with cap(network, lambda x: False), pytest.raises(OutOfMemory) as refused:
            run(builtin_prior)
        sentence, code = cli._outcome(refused.value)
        assert code == errors.OUT_OF_MEMORY and sentence == str(refused.value)
        assert sentence.startswith("Out of memory: giving back what was unused, ") and "did not help" in sentence
        assert ("smaller batches" if network is builtin_prior.unet else "tiles") in sentence
        assert torch.equal(run(builtin_prior).image, whole.image), "the next job works"


def test_a_batch_and_the_page_say_what_was_tried_too():
    from sdsedit.batch.local import told

    sentence = "Out of memory: giving back what was unused did not help; try a smaller size, or another device."
    assert told(OutOfMemory(sentence)) == (True, sentence)
    assert told(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")) == (True, "Out of memory.")


def test_other_errors_are_nobodys_memory(builtin_prior: UNetPrior):
    with torch.no_grad(), Sparing(builtin_prior) as sparing, pytest.raises(ValueError, match="A latent of"):
        sparing.decode(torch.zeros(1, 3, 8, 8))
    assert not sparing.notes


@pytest.mark.parametrize("rows", [1, 3])
def test_probes_hear_the_same_in_parts(builtin_prior: UNetPrior, rows: int):
    generator = torch.Generator().manual_seed(0)
    z_t, t = torch.randn(4, 4, 32, 32, generator=generator), torch.rand(4, generator=generator)
    text = builtin_prior.encode_text(["a cat wearing a crown", "a cat", "a dog in snow", "a red ball"])
    probes = (
        AttentionProbe((2, 5), slice(0, 4, 2)),
        SeveralProbes([AttentionProbe((5,), slice(0, 2)), AttentionProbe((2,), slice(1, 4))]),
    )
    for probe in probes:
        with torch.inference_mode():
            wanted = builtin_prior.predict(z_t, t, text, probe)
            with cap(builtin_prior.unet, lambda x: x.shape[0] <= rows):
                found = Sparing(builtin_prior).predict(z_t, t, text, probe)
        assert (found.eps - wanted.eps).abs().max() <= 1e-4
        several = isinstance(wanted.maps, tuple)
        assert isinstance(found.maps, tuple) is several
        for a, b in zip(
            found.maps if several else [found.maps], wanted.maps if several else [wanted.maps], strict=True
        ):
            assert a.cross.shape == b.cross.shape and (a.cross - b.cross).abs().max() <= 1e-5
            assert (a.refined - b.refined).abs().max() <= 1e-5


def test_the_networks_take_turns_on_a_gpu_that_cannot_hold_them(sd15_prior: UNetPrior):
    """The device is a name: what is tested is that the real prior is told to offload once all else was tried."""

    class Elsewhere:
        device = torch.device("cuda")

        def __getattr__(self, name: str) -> Any:
            return getattr(sd15_prior, name)

    text = sd15_prior.encode_text(["a cat"])
    z, t = torch.zeros(1, 4, 16, 16), torch.tensor([0.5])
    try:
        with torch.inference_mode(), cap(sd15_prior.unet, lambda x: bool(sd15_prior.offload)):
            sparing = Sparing(cast(Prior, Elsewhere()))
            assert sparing.predict(z, t, text).eps.shape == z.shape
        assert sd15_prior.offload and sd15_prior.resident is sd15_prior.unet
        assert sparing.notes == ("Memory ran short: the model's networks took turns on the device.",)
        assert not sd15_prior.start_offload(), "it is so already"
    finally:
        sd15_prior.offload, sd15_prior.resident = False, None


def test_it_is_known_when_memory_ran_out():
    with pytest.raises(RuntimeError) as real:  # a CPU's own
        torch.empty(2**55)
    assert out_of_memory(real.value)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")) and out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert not out_of_memory(RuntimeError("shapes do not fit")) and not out_of_memory(ValueError("not enough memory"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_that_is_really_full():
    prior = load_prior("builtin", device="cuda")
    image = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(3))
    request = Edit(target="a cat wearing a crown", source="a cat")
    config = EditConfig(steps=2, size=1024)
    whole = edit(image, prior, request, config)
    torch.cuda.synchronize()
    peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(0.7 * peak / total)
        found = edit(image, prior, request, config)
        assert any("Memory ran short" in note for note in found.notes)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.allclose(edit(image, prior, request, config).image, whole.image, atol=1e-3)
