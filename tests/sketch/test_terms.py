"""What pulls on a sketch beside distillation: features of the model and of CLIP, 0 for the guide, with gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

from sdsedit.sketch.terms import clip_terms, own_terms
from tests import tiny


def picture(side: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def hooks(prior) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) for net in (prior.unet, prior.vae) for m in net.modules()
    )


# What a network sees


def test_the_encoders_features_are_those_before_each_halving(any_prior):
    side = 4 * any_prior.multiple
    image = picture(side)
    features = any_prior.encoder_features(image)
    assert len(features) == any_prior.factor.bit_length() - 1
    for k, each in enumerate(features):
        assert each.dtype == torch.float32 and each.shape[0] == 1
        assert abs(each.shape[-1] - side / 2**k) <= 1  # diffusers pads before it halves
    assert [len(each) for each in any_prior.encoder_features(image.expand(2, -1, -1, -1))] == [2] * len(features)


def test_the_networks_features_are_its_way_up(any_prior):
    text, t = any_prior.encode_text(["a cat"]), torch.tensor([0.15])
    z = torch.randn(2, any_prior.channels, 16, 16, generator=generator())
    features = any_prior.network_features(z, t, text)
    assert len(features) == len(any_prior.unet.up_blocks) - 1 >= 2
    sides = [each.shape[-1] for each in features]
    assert sides == [16 >> k for k in reversed(range(len(sides)))] and all(each.shape[0] == 2 for each in features)
    assert all(each.dtype == torch.float32 and each.isfinite().all() for each in features)
    other = any_prior.network_features(z, t, any_prior.encode_text(["a dog"]))
    assert not torch.equal(features[-1], other[-1])  # it reads the prompt


def test_gradients_pass_through_both(any_prior):
    image = picture(2 * any_prior.multiple).requires_grad_()
    for feature in any_prior.encoder_features(image):
        (g,) = torch.autograd.grad(feature.square().mean(), image, retain_graph=True)
        assert g.isfinite().all() and g.any()
    z = torch.randn(1, any_prior.channels, 16, 16, generator=generator()).requires_grad_()
    for feature in any_prior.network_features(z, torch.tensor([0.15]), any_prior.encode_text(["a cat"])):
        (g,) = torch.autograd.grad(feature.square().mean(), z, retain_graph=True)
        assert g.isfinite().all() and g.any()


@torch.no_grad()
def test_looking_changes_no_output_and_leaves_nothing_behind(any_prior):
    image, z = picture(2 * any_prior.multiple), torch.randn(1, any_prior.channels, 16, 16, generator=generator())
    t, text = torch.tensor([0.15]), any_prior.encode_text(["a cat"])
    before, encoded = any_prior.predict(z, t, text).eps, any_prior.encode(image)
    any_prior.encoder_features(image)
    any_prior.network_features(z, t, text)
    assert torch.equal(any_prior.predict(z, t, text).eps, before) and torch.equal(any_prior.encode(image), encoded)
    assert hooks(any_prior) == 0


def test_an_exception_leaves_nothing_behind(any_prior):
    with pytest.raises(ValueError, match="multiples of"):
        any_prior.encoder_features(torch.rand(1, 3, 7, 7))
    with pytest.raises(ValueError, match="A latent of"):
        any_prior.network_features(torch.rand(1, 1, 16, 16), torch.tensor([0.1]), any_prior.encode_text(["a"]))
    text = any_prior.encode_text(["a"])
    narrow = replace(text, embeds=text.embeds[..., :-1])
    with pytest.raises(RuntimeError):  # from inside the network
        any_prior.network_features(torch.rand(1, any_prior.channels, 16, 16), torch.tensor([0.1]), narrow)
    assert hooks(any_prior) == 0


# Likeness in the model's own features


def test_own_terms_are_0_for_the_guide_grow_with_difference_and_pull(builtin_prior):
    guide, text = picture(), builtin_prior.encode_text(["a cat"])
    terms = own_terms(builtin_prior, guide, text, generator())
    assert list(terms) == ["encoder features", "UNet features"]
    noise = picture(seed=1) - 0.5
    for term in terms.values():
        assert term(guide).item() == pytest.approx(0, abs=1e-9)
        near, far = ((guide + amount * noise).clamp(0, 1).requires_grad_() for amount in (0.1, 0.8))
        assert 0 < term(near) < term(far) and term(far).ndim == 0
        (g,) = torch.autograd.grad(term(far), far)
        assert g.isfinite().all() and g.any()
        with torch.no_grad():
            assert term(far - 0.05 * g / g.norm()) < term(far)
        assert torch.equal(term(far), term(far))  # one noise for the whole run


def test_own_terms_draw_from_the_generator_and_keep_no_graph_of_the_guide(builtin_prior):
    guide, text = picture(), builtin_prior.encode_text(["a cat"])
    page = picture(seed=2)
    first, again = (own_terms(builtin_prior, guide, text, generator())["UNet features"](page) for _ in range(2))
    other = own_terms(builtin_prior, guide, text, generator().manual_seed(8))["UNet features"](page)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not first.requires_grad


# Likeness in CLIP


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    """A CLIP of random weights: nine layers, so that all that are compared are there."""
    folder = tmp_path_factory.mktemp("clip")
    tok = tiny.tokenizer(folder)
    text = tiny._text_config(tok, 16, 12)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, projection_dim=12, num_hidden_layers=9, num_attention_heads=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    return folder


def test_without_weights_there_are_no_clip_terms_and_nothing_is_fetched(tmp_path):
    assert clip_terms(picture(), "a cat", tmp_path / "nowhere") is None
    assert clip_terms(picture(), "a cat", tmp_path) is None
    assert clip_terms(picture(), "a cat", "sdsedit-tests/no-such-model") is None


def test_a_clip_without_a_tokenizer_or_in_pickles_is_none(clip_folder, tmp_path):
    (tmp_path / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    model = CLIPModel.from_pretrained(clip_folder)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert clip_terms(picture(), "a cat", tmp_path) is None
    model.save_pretrained(tmp_path)
    assert clip_terms(picture(), "a cat", tmp_path) is None


def test_clip_terms_are_0_for_the_guide_and_pull(clip_folder):
    guide = picture()
    terms = clip_terms(guide, "a red cat", clip_folder)
    assert terms is not None and list(terms) == ["CLIP layers", "CLIP text"]
    assert terms["CLIP layers"](guide).item() == pytest.approx(0, abs=1e-9)
    page = picture(seed=3).requires_grad_()
    for term in terms.values():
        value = term(page)
        (g,) = torch.autograd.grad(value, page)
        assert value.ndim == 0 and g.isfinite().all() and g.any()
        with torch.no_grad():
            assert term(page - 0.05 * g / g.norm()) < value
    assert 0 <= terms["CLIP text"](page) <= 2


def test_clip_terms_are_what_clip_itself_gives(clip_folder):
    model = CLIPModel.from_pretrained(clip_folder).eval()
    guide, page, prompt = picture(32, seed=5), picture(32, seed=4), "a cat with a hat"  # of the size that it sees
    terms = clip_terms(guide, prompt, clip_folder)
    assert terms is not None
    mean, deviation = (
        torch.tensor(values).view(1, 3, 1, 1)
        for values in ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    )
    words = tiny.CLIPTokenizer.from_pretrained(clip_folder)([prompt], return_tensors="pt")
    with torch.no_grad():
        out = model(input_ids=words["input_ids"], pixel_values=(page - mean) / deviation)
        cosine = (out.image_embeds * out.text_embeds).sum()
        assert terms["CLIP text"](page).item() == pytest.approx(1 - cosine.item(), abs=1e-4)
        a, b = (model.vision_model((x - mean) / deviation, output_hidden_states=True) for x in (page, guide))
        layers = [(a.hidden_states[k] - b.hidden_states[k]).square().mean() for k in (3, 6, 9)]
        assert terms["CLIP layers"](page).item() == pytest.approx(torch.stack(layers).mean().item(), rel=1e-3)


def test_a_page_of_any_size_and_a_prompt_of_any_length(clip_folder):
    terms = clip_terms(torch.rand(1, 3, 40, 96), "a cat " * 200, clip_folder)
    assert terms is not None and all(term(torch.rand(1, 3, 40, 96)).isfinite() for term in terms.values())
