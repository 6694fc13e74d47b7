"""sdsedit.style: what comes back for a content, a prompt and a texture, what is refused, and when a run stops."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sdsedit.edit import edit
from sdsedit.errors import InputRefused
from sdsedit.guidance.attention_distillation import Look, Reference, Styled, gradient, see
from sdsedit.guidance.base import Prompts, State, Step, Update
from sdsedit.prior import UNetPrior
from sdsedit.request import Edit, EditConfig
from sdsedit.style import WAYS, StyleConfig, StyleRequest, decode_torus, style, way_of


def picture(height: int = 48, width: int = 64, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


LOOK = (picture(40, 40, 1),)
FEW = StyleConfig(steps=2, size=64)


def test_a_content_keeps_its_size_and_one_call_is_another(builtin_prior: UNetPrior):
    request = StyleRequest(LOOK, picture())
    made = style(builtin_prior, request, FEW)
    assert made.kind == "transfer" and made.image.shape == (1, 3, 48, 64)
    assert made.image.min() >= 0 and made.image.max() <= 1
    assert made.steps_done == 2 and not made.stopped and len(made.history) == 2
    assert {"t", "style", "content"} == set(made.history[0])
    assert torch.equal(made.image, style(builtin_prior, request, FEW).image)
    other = style(builtin_prior, replace(request, references=(picture(40, 40, 2),)), FEW)
    assert not torch.equal(made.image, other.image)


def test_words_are_drawn_at_the_models_size(builtin_prior: UNetPrior):
    request = StyleRequest(LOOK, prompt="a cat " * 60)
    made = style(builtin_prior, request, replace(FEW, seed=5))
    assert made.image.shape == (1, 3, 64, 64) and made.kind == "words"
    assert any("these words were cut" in note for note in made.notes)
    assert not torch.equal(made.image, style(builtin_prior, request, replace(FEW, seed=6)).image)


@pytest.mark.parametrize("sampled", [True, False])
def test_a_texture_of_any_size_has_no_seam(builtin_prior: UNetPrior, sampled: bool):
    """Turning the torus turns the picture: there is no place where it begins."""
    way = replace(WAYS["texture"], sampled=sampled, steps=1, start=0.9)
    made = style(builtin_prior, StyleRequest(LOOK, texture=(90, 150)), StyleConfig(size=64, way=way))
    assert made.image.shape == (1, 3, 90, 150) and made.z.shape[-2:] == (23, 38)
    z = made.z[..., :16, :32]
    plain, turned = (decode_torus(builtin_prior, each, 16) for each in (z, z.roll((16, 16), (2, 3))))
    torch.testing.assert_close(turned, plain.roll((64, 64), (2, 3)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (20, 36), (7, 33)])
def test_tiles_of_a_decoder_that_looks_at_no_neighbour_are_the_whole(size: tuple[int, int]):
    """Whatever overlaps is faded so that the weights add up to one."""

    def decode(z: Tensor) -> Tensor:
        return z.repeat_interleave(4, -1).repeat_interleave(4, -2)

    z = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    plain = SimpleNamespace(factor=4, decode=decode)
    torch.testing.assert_close(decode_torus(plain, z, 16), decode(z))  # pyright: ignore[reportArgumentType]


def test_several_references_and_regions(builtin_prior: UNetPrior):
    numbers = torch.zeros(1, 1, 48, 64)
    numbers[..., 32:] = 7
    looks = (picture(40, 40, 1), picture(32, 60, 2))
    where = (torch.zeros(1, 1, 40, 40), torch.full((1, 1, 32, 60), 7.0))
    both = style(builtin_prior, StyleRequest(looks, picture()), FEW)
    apart = style(builtin_prior, StyleRequest(looks, picture(), None, None, numbers, where), FEW)
    assert not torch.equal(both.image, apart.image)


def test_a_run_stops_when_asked_and_keeps_what_is_there(builtin_prior: UNetPrior):
    seen = []

    def on_step(step) -> bool:
        seen.append((step.index, step.total, step.preview().shape))
        return step.index < 1

    made = style(builtin_prior, StyleRequest(LOOK, picture()), replace(FEW, steps=9), on_step)
    assert made.stopped == "cancelled" and made.steps_done == 2
    assert [index for index, *_ in seen] == [0, 1] and seen[0][1] == 9 and seen[0][2][1] == 3


def test_a_gradient_that_is_not_finite_stops_the_run_with_the_last_good_state(builtin_prior: UNetPrior, monkeypatch):
    from sdsedit import style as module

    def poisoned(*_, **__):
        z = torch.zeros(1, 4, 16, 16)
        yield torch.tensor([0.5]), z, {"style": torch.zeros(())}
        yield torch.tensor([0.25]), z + torch.nan, {"style": torch.zeros(())}

    monkeypatch.setattr(module, "optimise", poisoned)
    way = StyleConfig(size=64, way=replace(WAYS["transfer"], steps=2))
    made = style(builtin_prior, StyleRequest(LOOK, picture()), way)
    assert made.stopped == "non-finite gradient at step 2, t=0.25" and made.steps_done == 1
    assert made.image.isfinite().all()


def test_settings_are_the_papers_then_the_models_then_a_persons(builtin_prior: UNetPrior):
    assert way_of(builtin_prior, "transfer", StyleConfig()) == WAYS["transfer"]
    assert (WAYS["transfer"].steps, WAYS["transfer"].content_weight, WAYS["texture"].steps) == (200, 0.25, 300)
    model = type("Model", (), {"editing": {"style": {"transfer": {"steps": 7, "step_size": 0.5}}}})()
    assert way_of(model, "transfer", StyleConfig()).steps == 7
    assert way_of(model, "transfer", StyleConfig(steps=3)) == replace(WAYS["transfer"], steps=3, step_size=0.5)
    given = replace(WAYS["words"], inner=9)
    assert way_of(model, "transfer", StyleConfig(way=given)) == given
    model.editing = {"style": {"transfer": {"speed": 1}}}
    with pytest.raises(InputRefused, match=r"editing\.json has settings of a style"):
        way_of(model, "transfer", StyleConfig())


def test_the_built_in_models_settings_are_read():
    from sdsedit.prior import load_prior

    prior = load_prior("builtin", device="cpu")
    assert all(way_of(prior, kind, StyleConfig()).layers == 7 for kind in WAYS)


CAT = picture()


@pytest.mark.parametrize(
    ("request_", "config", "sentence"),
    [
        (StyleRequest(LOOK), FEW, "Say one of: a content picture, a prompt"),
        (StyleRequest(LOOK, CAT, "a cat"), FEW, "Say one of"),
        (StyleRequest((), CAT), FEW, "needs 1 to 8 reference pictures; 0 given"),
        (StyleRequest(LOOK * 9, CAT), FEW, "needs 1 to 8 reference pictures; 9 given"),
        (StyleRequest(LOOK, prompt="  "), FEW, "The prompt is empty"),
        (StyleRequest(LOOK, texture=(0, 64)), FEW, "the texture's height is 0"),
        (StyleRequest(LOOK, texture=(64, 9000)), FEW, "the texture's width is 9000"),
        (StyleRequest(LOOK, CAT * 2), FEW, "values must be numbers from 0 to 1"),
        (StyleRequest((LOOK[0][0],), CAT), FEW, "must be a float32 tensor"),
        (StyleRequest(LOOK, CAT, regions=CAT[:, :1]), FEW, "give them for both"),
        (StyleRequest(LOOK * 2, CAT, None, None, CAT[:, :1], (CAT[:, :1],)), FEW, "needs its own picture of regions"),
        (
            StyleRequest(LOOK, CAT, None, None, torch.ones(1, 1, 48, 64), (torch.ones(1, 1, 48, 64),)),
            FEW,
            "must be exactly as large",
        ),
        (StyleRequest((CAT,), CAT, None, None, CAT[:, :1], (CAT[:, :1],)), FEW, "at most 16 are allowed"),
        (
            StyleRequest((CAT,), CAT, None, None, torch.ones(1, 1, 48, 64), (torch.zeros(1, 1, 48, 64),)),
            FEW,
            "1 of the content's regions have a colour",
        ),
        (StyleRequest(LOOK, CAT), StyleConfig(steps=0), "steps is 0"),
        (StyleRequest(LOOK, CAT), StyleConfig(content_weight=-1), "content_weight is -1"),
        (StyleRequest(LOOK, CAT), StyleConfig(layers=0), "layers is 0"),
        (StyleRequest(LOOK, CAT), StyleConfig(seed=-1), "seed is -1"),
        (StyleRequest(LOOK, CAT), StyleConfig(way=replace(WAYS["transfer"], start=2)), "start is 2"),
        (StyleRequest(LOOK, CAT), StyleConfig(way=replace(WAYS["transfer"], borrow=4)), "borrow is 4"),
        (
            StyleRequest((CAT,), CAT, None, None, torch.ones(1, 1, 48, 64), (torch.ones(1, 1, 48, 64),)),
            StyleConfig(way=replace(WAYS["words"], borrow=1.0)),
            "borrowed without regions only",
        ),
    ],
)
def test_what_is_refused(builtin_prior: UNetPrior, request_: StyleRequest, config: StyleConfig, sentence: str):
    with pytest.raises(InputRefused) as refused:
        style(builtin_prior, request_, config)
    assert sentence in str(refused.value) and str(refused.value).endswith(".")


# Beside another method


class Constant:
    """A method that goes one way, inside a place of its own."""

    localizes, t_min, t_max, steps = False, 0.1, 0.9, 3

    def __call__(self, prior, step: Step, state: State | None = None) -> Update:
        place = torch.zeros(1, 1, 16, 16)
        place[..., :8] = 1
        return Update(0.1 * place.expand_as(step.z), State(place), {"t": torch.tensor(0.5)})


def test_a_style_beside_a_method_is_the_methods_step_and_a_pull_of_its_weight(builtin_prior: UNetPrior):
    """step = step_method + weight rms(step_method) M g / rms(M g), and the style comes closer."""
    prior, weight = builtin_prior, 2.0
    z, reference = (torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    look = Look((Reference(reference),), layers=4)
    text = prior.encode_text([""])
    step = Step(1, 3, z, z, Prompts(text, text, text, text), lambda: None)  # pyright: ignore[reportArgumentType]
    with torch.inference_mode():
        update = Styled(Constant(), look, weight)(prior, step)  # pyright: ignore[reportArgumentType]
    own = Constant()(prior, step)
    t = torch.tensor([0.25])
    g, _ = gradient(prior, z, t, look, see(prior, look, t, text), text)
    g[..., 8:] = 0
    expected = own.step + weight * own.step.square().mean().sqrt() * g / g.square().mean().sqrt()
    torch.testing.assert_close(update.step, expected)
    assert set(update.stats) == {"t", "style"} and update.state is not None


def test_an_edit_takes_the_look_of_references(builtin_prior: UNetPrior):
    asked = Edit("a cat wearing a crown", "a cat")
    config = EditConfig(steps=2, size=64, refine=0.0)
    plain = edit(CAT, builtin_prior, asked, config)
    styled = edit(CAT, builtin_prior, replace(asked, references=LOOK), config)
    assert "style" in styled.history[0] and "style" not in plain.history[0]
    assert not torch.equal(plain.z, styled.z)
    none = edit(CAT, builtin_prior, replace(asked, references=LOOK), replace(config, style_weight=0.0))
    assert torch.equal(plain.z, none.z)
    assert type(styled.method) is type(plain.method)
    with pytest.raises(InputRefused, match="at most 8 references; 9 are given"):
        edit(CAT, builtin_prior, replace(asked, references=LOOK * 9), config)
    with pytest.raises(InputRefused, match="style_weight is 11"):
        edit(CAT, builtin_prior, asked, replace(config, style_weight=11))
