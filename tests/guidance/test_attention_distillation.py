"""Attention distillation: its losses and gradients against a plain float64 transcription, and what must hold of both
modes on a real little network."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdsedit.guidance.attention_distillation import (
    Borrowed,
    Look,
    Reference,
    SelfAttention,
    adain,
    content_loss,
    gradient,
    observe,
    optimise,
    sample_in_style,
    see,
    style_loss,
    tiles,
)
from sdsedit.prior import UNetPrior


def latent(seed: int, prior: UNetPrior, size: tuple[int, int] = (16, 16), batch: int = 1) -> Tensor:
    return torch.randn(batch, prior.channels, *size, generator=torch.Generator().manual_seed(seed))


class Plain:
    """An attention processor with every softmax written out; records queries, keys and values of self-attention."""

    def __init__(self, seen: list) -> None:
        self.seen = seen

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        other = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(other), attn.to_v(other)
        out = plain_attention(q, k, v, attn.heads)
        if encoder_hidden_states is None:
            self.seen.append((q, k, v, out, attn.heads))
        return attn.to_out[1](attn.to_out[0](out))


def plain_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, allowed: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V, head by head, [B, N, heads d]; `allowed` [N, M]: which keys a query may look at."""
    outputs = []
    for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        scores = a @ b.mT / math.sqrt(a.shape[-1])
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -math.inf)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        outputs.append(weights @ c)
    return torch.cat(outputs, -1)


def plain_layers(prior: UNetPrior, z: Tensor, index: int) -> list:
    """What each self-attention layer of the network in float64 does on z at timestep `index`, in call order."""
    network, seen = copy.deepcopy(prior.unet).double(), []
    network.set_attn_processor(Plain(seen))  # pyright: ignore[reportArgumentType]  # any callable will do
    text = prior.encode_text([""])
    added = None
    if text.pooled is not None:
        side = torch.tensor([z.shape[-2], z.shape[-1]], dtype=torch.float64) * prior.factor
        added = {"text_embeds": text.pooled.double(), "time_ids": torch.cat([side, side * 0, side])[None]}
    network(z, index, encoder_hidden_states=text.embeds.double(), added_cond_kwargs=added)
    return seen


@pytest.mark.parametrize("family", ["sd15", "sdxl", "koala_700m", "builtin_like"])
def test_loss_and_gradient_are_the_papers(family: str, tiny_prior):
    """Two references of different sizes, a content picture, and the last 4 layers, against the transcription."""
    prior, t, count, weight = tiny_prior(family), torch.tensor([0.4]), 4, 0.25
    z, theirs, content = latent(0, prior), [latent(1, prior), latent(2, prior, (16, 24))], latent(3, prior)
    look = Look(tuple(Reference(each) for each in theirs), content, weight, layers=count)
    empty = prior.encode_text([""])
    g, losses = gradient(prior, z, t, look, see(prior, look, t, empty), empty)

    index = int(prior.schedule.timestep(t))
    leaf = z.double().requires_grad_()
    own = plain_layers(prior, leaf, index)[-count:]
    references = [plain_layers(prior, each.double(), index)[-count:] for each in theirs]
    wanted = plain_layers(prior, content.double(), index)[-count:]
    style = kept = torch.zeros((), dtype=torch.float64)
    for n, (q, _, _, out, heads) in enumerate(own):
        k, v = (torch.cat([each[n][part] for each in references], dim=1) for part in (1, 2))
        style = style + (out - plain_attention(q, k, v, heads).detach()).abs().mean()
        kept = kept + (q - wanted[n][0].detach()).abs().mean()
    (style + weight * kept).backward()
    assert losses["style"].item() == pytest.approx(style.item(), rel=1e-4)
    assert losses["content"].item() == pytest.approx(kept.item(), rel=1e-4)
    assert leaf.grad is not None and leaf.grad.abs().max() > 0
    torch.testing.assert_close(g.double(), leaf.grad, rtol=1e-3, atol=2e-4 * float(leaf.grad.abs().max()))


def test_regions_are_a_boolean_mask(builtin_prior: UNetPrior):
    """Where numbers match a cell may look; what has no like of its own looks at all."""
    prior, t, count = builtin_prior, torch.tensor([0.3]), 3
    z, reference = latent(0, prior), latent(1, prior)
    left = torch.zeros(1, 1, 16, 16)
    left[..., :8] = 5.0
    other = torch.zeros(1, 1, 16, 16)
    other[..., :8, :] = 5.0
    own, theirs = (observe(prior, each, t, prior.encode_text([""]), count) for each in (z, reference))
    expected = torch.zeros((), dtype=torch.float64)
    for layer, known in zip(own, theirs, strict=True):
        h, w = layer.grid
        numbers = [F.interpolate(each, (h, w), mode="nearest-exact").flatten() for each in (left, other)]
        allowed = numbers[0][:, None] == numbers[1][None, :]
        q, k, v, out = (
            each.double().transpose(1, 2).flatten(2) for each in (layer.q, known.k, known.v, layer.out)
        )  # fmt: skip
        target = plain_attention(q, k, v, layer.q.shape[1], allowed)
        expected = expected + (out - target).abs().mean()
    found = style_loss(own, [theirs], left, [other])
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert found.item() != pytest.approx(style_loss(own, [theirs]).item(), rel=1e-3)
    nowhere = style_loss(own, [theirs], torch.full((1, 1, 16, 16), 9.0), [other])
    assert nowhere.item() == pytest.approx(style_loss(own, [theirs]).item(), rel=1e-6)


def test_a_picture_is_its_own_style(any_prior: UNetPrior):
    """SA(Q, K, V) - SA(Q, K_ref, V_ref) = 0 where the picture is the reference, and Q - Q_content too."""
    z, t, empty = latent(0, any_prior), torch.tensor([0.5]), any_prior.encode_text([""])
    look = Look((Reference(z),), z)
    g, losses = gradient(any_prior, z, t, look, see(any_prior, look, t, empty), empty)
    assert losses["style"] < 1e-5 and losses["content"] < 1e-5 and g.shape == z.shape


def test_a_reference_twice_is_the_reference(builtin_prior: UNetPrior):
    """Doubled keys and values halve every weight and leave the sum as it is."""
    z, reference, t = latent(0, builtin_prior), latent(1, builtin_prior), torch.tensor([0.5])
    empty = builtin_prior.encode_text([""])
    own = observe(builtin_prior, z, t, empty, 4)
    theirs = observe(builtin_prior, reference, t, empty, 4)
    assert style_loss(own, [theirs, theirs]).item() == pytest.approx(style_loss(own, [theirs]).item(), rel=1e-5)


def test_draws_are_more_references(builtin_prior: UNetPrior):
    """Seen with three noises is three references noised by hand, regions and all; clean, it is seen once."""
    prior, t, empty = builtin_prior, torch.tensor([0.5]), builtin_prior.encode_text([""])
    z, theirs = latent(0, prior), [latent(1, prior), latent(2, prior, (16, 24))]
    regions = [torch.zeros(1, 1, *each.shape[-2:]) for each in (z, *theirs)]
    for each in regions:
        each[..., :8] = 1.0
    named = [Reference(each, where) for each, where in zip(theirs, regions[1:], strict=True)]
    look = Look(tuple(named), regions=regions[0], layers=4, draws=3)
    seen = see(prior, look, t, empty, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    noised = [
        Reference(prior.schedule.add_noise(each.z, torch.randn(each.z.shape, generator=generator), t), each.regions)
        for each in named * 3
    ]
    by_hand = replace(look, references=tuple(noised), draws=1)
    g, losses = gradient(prior, z, t, look, seen, empty)
    expected, known = gradient(prior, z, t, by_hand, see(prior, by_hand, t, empty), empty)
    assert losses["style"].item() == pytest.approx(known["style"].item(), rel=1e-5)
    torch.testing.assert_close(g, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    once = see(prior, replace(look, draws=1), t, empty, torch.Generator().manual_seed(5))
    assert gradient(prior, z, t, look, once, empty)[1]["style"].item() != pytest.approx(known["style"].item(), rel=1e-3)
    assert len(see(prior, look, t, empty).references) == 2


def test_layers_are_counted_from_the_end_in_call_order(tiny_prior):
    """The up path comes last, though diffusers lists it before the middle."""
    prior = tiny_prior("sd15")
    z, t, empty = latent(0, prior), torch.tensor([0.5]), prior.encode_text([""])
    order = [math.prod(layer.grid) for layer in observe(prior, z, t, empty, 100)]
    assert order.index(min(order)) not in (0, len(order) - 1) and order[-1] == max(order)
    assert len(observe(prior, z, t, empty)) == 6
    last = observe(prior, z, t, empty, 2)
    assert [math.prod(layer.grid) for layer in last] == order[-2:]
    torch.testing.assert_close(last[-1].q, observe(prior, z, t, empty, 5)[-1].q)


@pytest.mark.parametrize("family", ["sd15", "builtin_like"])
def test_checkpointing_changes_no_gradient_and_saves_activations(family: str, tiny_prior):
    prior = tiny_prior(family)
    z, t, empty = latent(0, prior), torch.tensor([0.4]), prior.encode_text([""])
    look = Look((Reference(latent(1, prior)),))
    seen = see(prior, look, t, empty)
    kept: list[int] = []
    found = []
    for checkpoint in (False, True):
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
            found.append(gradient(prior, z, t, Look(look.references, checkpoint=checkpoint), seen, empty)[0])
        kept.append(-1)
    assert torch.equal(*found)
    assert not prior.unet.is_gradient_checkpointing
    parts = [sum(part) for part in (kept[: kept.index(-1)], kept[kept.index(-1) + 1 : -1])]
    assert 0 < parts[1] < parts[0]


def test_the_probe_changes_nothing_and_leaves_nothing(builtin_prior: UNetPrior):
    z, t, empty = latent(0, builtin_prior), torch.tensor([0.4]), builtin_prior.encode_text([""])

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in builtin_prior.unet.modules())

    before = hooks()
    with torch.no_grad():
        found = builtin_prior.predict(z, t, empty, SelfAttention(2))
        assert torch.equal(found.eps, builtin_prior.predict(z, t, empty).eps)
        with pytest.raises(RuntimeError):  # the network fails half-way
            builtin_prior.predict(z, t, replace(empty, embeds=empty.embeds[..., :-1]), SelfAttention(2))
    assert hooks() == before
    with pytest.raises(RuntimeError, match="Nothing was recorded"):
        SelfAttention(2).collect()
    with pytest.raises(ValueError, match="At least one layer"):
        SelfAttention(0)


def test_adain_gives_the_references_moments():
    z, a, b = (torch.randn(1, 4, 6, w, generator=torch.Generator().manual_seed(w)) * w for w in (8, 5, 9))
    found = adain(z, [a, b])
    both = torch.cat([a.flatten(2), b.flatten(2)], 2)
    torch.testing.assert_close(found.mean((2, 3)), both.mean(2))
    torch.testing.assert_close(found.std((2, 3)), both.std(2))
    torch.testing.assert_close(adain(found, [a, b]), found)


@pytest.mark.parametrize(("size", "side", "count"), [((32, 32), 16, 4), ((40, 17), 16, 6), ((8, 20), 16, 2)])
def test_tiles_cover_the_torus(size: tuple[int, int], side: int, count: int):
    for generator in (None, torch.Generator().manual_seed(3)):
        found = tiles(size, side, generator)
        assert len(found) == count
        seen = torch.zeros(size)
        for rows, columns in found:
            assert len(rows) == len(columns) == side
            seen[rows[:, None], columns] += 1
        assert seen.min() >= 1


def test_tiles_that_cover_a_picture_once_have_its_mean_gradient(builtin_prior: UNetPrior):
    """One tile as large as the torus, turned: the loss of a turned picture, its gradient turned back."""
    prior, t = builtin_prior, torch.tensor([0.4])
    z, look = latent(0, prior, (16, 32)), Look((Reference(latent(1, prior)),), layers=3)
    empty = prior.encode_text([""])
    seen = see(prior, look, t, empty)
    halves = [gradient(prior, z[..., k : k + 16], t, look, seen, empty)[0] for k in (0, 16)]
    from sdsedit.guidance.attention_distillation import _tiled_gradient

    whole, _ = _tiled_gradient(prior, z, t, look, seen, empty, 16, None)
    torch.testing.assert_close(whole, torch.cat(halves, dim=-1) / 2, rtol=1e-4, atol=1e-8)


def test_optimising_brings_the_losses_down_under_inference_mode(builtin_prior: UNetPrior):
    prior = builtin_prior
    z, look = latent(0, prior), Look((Reference(latent(1, prior)),), latent(2, prior), content_weight=0.1, layers=4)
    with torch.inference_mode():
        steps = list(optimise(prior, z, look, 8, step_size=0.1, span=(0.5, 0.5)))
    first, last = (
        sum(float(x) for x in (step[2]["style"], 0.1 * step[2]["content"])) for step in (steps[0], steps[-1])
    )
    assert last < 0.9 * first and len(steps) == 8
    assert torch.equal(z, latent(0, prior)) and not torch.equal(steps[0][1], steps[1][1])
    times = [float(t) for t, _, _ in optimise(prior, z, look, 4, span=(0.8, 0.0))]
    assert times == pytest.approx([0.6, 0.4, 0.2, 0.0])


def test_sampling_with_no_step_of_distillation_is_plain_sampling(builtin_prior: UNetPrior):
    """`inner` 0 and no AdaIN: DDIM; one seed is one picture; and distillation makes the attention more alike."""
    from sdsedit.guidance.base import Prompts
    from sdsedit.guidance.sample import sample

    prior = builtin_prior
    look, noise = Look((Reference(latent(1, prior)),), layers=4), latent(2, prior)
    text = prior.encode_text(["a cat", ""])

    def run(inner: int, **settings) -> list:
        generator = torch.Generator().manual_seed(0)
        return list(
            sample_in_style(prior, noise, text[0], look, generator, 3, inner, 0.05, 2.0, **settings)
        )  # fmt: skip

    plain = run(0, match=False)
    prompts = Prompts(text[0], text[1], text[1], text[1])
    *_, (expected, _) = sample(prior, prompts, noise, 3, 2.0)
    torch.testing.assert_close(plain[-1][2], expected.detach(), rtol=1e-4, atol=1e-4)
    styled, again = run(2), run(2)
    assert torch.equal(styled[-1][1], again[-1][1]) and not torch.allclose(styled[-1][1], plain[-1][1], atol=1e-2)
    assert [round(float(t), 3) for t, *_ in plain] == [0.653, 0.327, 0.0]


# Borrowed keys and values


@pytest.mark.parametrize("family", ["sd15", "sdxl", "koala_700m", "builtin_like"])
def test_what_is_borrowed_from_itself_changes_nothing(family: str, tiny_prior):
    prior, t = tiny_prior(family), torch.tensor([0.4])
    z, text = latent(0, prior), prior.encode_text([""])
    with torch.no_grad():
        own = observe(prior, z, t, text, 4)
        plain, lent = prior.predict(z, t, text).eps, prior.predict(z, t, text, Borrowed([own])).eps
        twice = prior.predict(z, t, text, Borrowed([own, own])).eps  # a softmax over each key twice is the softmax
    torch.testing.assert_close(lent, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(twice, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "koala_700m", "builtin_like"])
def test_a_borrowing_layer_answers_with_the_target_of_the_loss(family: str, tiny_prior):
    """In the last layer, whose queries are as they were, softmax(Q K_ref^T / sqrt(d)) V_ref; L_AD is 0 there; the
    layers before it are as they were, and a batch of two borrows as each by itself."""
    prior, t = tiny_prior(family), torch.tensor([0.4])
    z, theirs, text = latent(0, prior, batch=2), latent(1, prior, (16, 24)), prior.encode_text([""])
    with torch.no_grad():
        reference = observe(prior, theirs, t, text, 1)
        plain = observe(prior, z, t, text, 2)
        with Borrowed([reference]).attach(prior.unet, 2, (16, 16)):
            before, last = observe(prior, z, t, text, 2)
        k, v = (each.transpose(1, 2).flatten(2).expand(2, -1, -1) for each in (reference[0].k, reference[0].v))
        q = plain[1].q.transpose(1, 2).flatten(2)
        expected = plain_attention(q, k, v, last.q.shape[1])
        torch.testing.assert_close(last.out.transpose(1, 2).flatten(2), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(before.out, plain[0].out)
        assert style_loss([last], [reference]).item() < 1e-5 < style_loss([plain[1]], [reference]).item()
        assert torch.equal(observe(prior, z, t, text, 2)[1].out, plain[1].out)  # nothing was left behind


def test_how_far_predictions_go_towards_the_borrowed_ones(builtin_prior: UNetPrior):
    """One step of sampling by hand: e_own + borrow (e_borrowed - e_own), with the reference's own noise."""
    prior, text, t = builtin_prior, builtin_prior.encode_text([""]), torch.tensor([0.9])
    look, z_t = Look((Reference(latent(1, prior)),), layers=3), latent(2, prior)
    noised = torch.randn(latent(1, prior).shape, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        seen = observe(prior, prior.schedule.add_noise(latent(1, prior), noised, t), t, text, 3)
        own, lent = prior.predict(z_t, t, text).eps, prior.predict(z_t, t, text, Borrowed([seen])).eps
    assert not torch.allclose(own, lent, atol=1e-3)
    for borrow in (0.0, 0.5, 1.0, 2.0):
        generator = torch.Generator().manual_seed(4)
        steps = sample_in_style(
            prior, z_t, text, look, generator, 1, 0, scale=1.0, match=False, borrow=borrow, start=0.9
        )
        ((_, _, z_0, _),) = steps
        expected = prior.schedule.to_sample(own + borrow * (lent - own), z_t, t)
        torch.testing.assert_close(z_0, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="with regions"):
        next(
            sample_in_style(
                prior, z_t, text, replace(look, regions=torch.ones(1, 1, 16, 16)), torch.Generator(), borrow=1.0
            )
        )


def test_nothing_is_distilled_below_until(builtin_prior: UNetPrior):
    """The last steps are the sampler's, and their losses are told all the same."""
    prior, text = builtin_prior, builtin_prior.encode_text([""])
    look, noise = Look((Reference(latent(1, prior)),), layers=3), latent(2, prior)

    def run(inner: int, until: float) -> list:
        generator = torch.Generator().manual_seed(0)
        return list(
            sample_in_style(
                prior, noise, text, look, generator, 4, inner, 0.1, 1.0, match=False, until=until, start=0.8
            )
        )

    never, plain, half, whole = run(2, 0.9), run(0, 0.0), run(2, 0.3), run(2, 0.0)
    assert all(torch.equal(one[1], other[1]) for one, other in zip(never, plain, strict=True))
    assert [torch.equal(one[1], other[1]) for one, other in zip(half, whole, strict=True)] == [True, True, False, False]
    assert all(set(losses) == {"style"} for *_, losses in (*never, *half))


def test_only_the_finest_layers_are_compared(builtin_prior: UNetPrior):
    """Their share of the loss and its gradient; of layers of one grid, all of them."""
    prior, t, empty = builtin_prior, torch.tensor([0.4]), builtin_prior.encode_text([""])
    z, look = latent(0, prior), Look((Reference(latent(1, prior)),), layers=7)
    seen, own = see(prior, look, t, empty), observe(prior, z, t, empty, 7)
    most = max(layer.q.shape[2] for layer in own)
    chosen = [n for n, layer in enumerate(own) if layer.q.shape[2] == most]
    assert 0 < len(chosen) < len(own)
    expected = style_loss([own[n] for n in chosen], [[seen.references[0][n] for n in chosen]])
    g, losses = gradient(prior, z, t, replace(look, finest=True), seen, empty)
    assert losses["style"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["style"] < gradient(prior, z, t, look, seen, empty)[1]["style"]
    assert g.abs().max() > 0


# Joint transformers


@pytest.fixture(scope="module")
def joint_priors(tmp_path_factory):
    from sdsedit.prior.mmdit import MMDiTPrior
    from tests import tiny_mmdit

    with torch.inference_mode(False):
        return {
            name: MMDiTPrior.from_pipeline(tiny_mmdit.FAMILIES[name](tmp_path_factory.mktemp(name)), name)
            for name in ("flux_dev", "sd35_medium")
        }


def recording(seen: list):
    """SDPA that also records what it is given."""
    own = F.scaled_dot_product_attention

    def record(query: Tensor, key: Tensor, value: Tensor, **settings) -> Tensor:
        seen.append((query, key, value))
        return own(query, key, value, **settings)

    return record


@pytest.mark.parametrize("family", ["flux_dev", "sd35_medium"])
def test_a_joint_transformers_picture_tokens_are_what_the_network_attends_with(family: str, joint_priors, monkeypatch):
    """Q, K and V after QK-norm and rotary places, as the network itself hands them to its attention; the loss is the
    transcription's, and the gradient a difference of losses."""
    prior, t = joint_priors[family], torch.tensor([0.4])
    z, reference = (torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    empty, cells = prior.encode_text([""]), 24
    seen: list = []
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", recording(seen))
        prior.predict(z, t, empty)
    layers = observe(prior, z, t, empty, 3)
    for (q, k, v), layer in zip(seen[-3:], layers, strict=True):
        # FLUX.1 puts the text first, SD3 the picture
        inside = slice(-cells, None) if family == "flux_dev" else slice(cells)
        for theirs, ours in ((q, layer.q), (k, layer.k), (v, layer.v)):
            torch.testing.assert_close(ours, theirs[:, :, inside], rtol=1e-5, atol=1e-6)
        assert layer.grid == (4, 6)
        flat = [each.double().transpose(1, 2).flatten(2) for each in (layer.q, layer.k, layer.v, layer.out)]
        expected = plain_attention(*flat[:3], heads=layer.q.shape[1])
        torch.testing.assert_close(flat[3], expected, rtol=1e-4, atol=1e-6)

    look = Look((Reference(reference),), z + 0.3, layers=3)
    known = see(prior, look, t, empty)
    g, _ = gradient(prior, z, t, look, known, empty)
    again, _ = gradient(prior, z, t, replace(look, checkpoint=True), known, empty)
    torch.testing.assert_close(again, g, rtol=1e-4, atol=1e-7)

    def loss(at: Tensor) -> float:
        with torch.no_grad():
            own = observe(prior, at, t, empty, 3)
            style = style_loss(own, known.references)
            return float(style + 0.25 * content_loss(own, known.content))  # pyright: ignore[reportArgumentType]

    step = 1e-3 * g / g.norm()
    assert (loss(z + step) - loss(z - step)) / 2e-3 == pytest.approx(float(g.norm()), rel=0.1)
    assert len(observe(prior, z, t, empty)) == min(7, len(seen))
