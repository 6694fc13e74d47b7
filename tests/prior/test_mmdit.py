"""prior.mmdit: SD3, SD3.5 and FLUX.1 say what their diffusers pipelines say, as noise; text means the same."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FluxPipeline

from sdsedit.attention.probe import AttentionProbe, SeveralProbes
from sdsedit.edit import edit
from sdsedit.guidance import DDS, LUSD, SDS
from sdsedit.guidance.base import Prompts, Step, predict
from sdsedit.prior.base import Text
from sdsedit.prior.mmdit import MMDiTPrior, pack, unpack
from sdsedit.request import Edit, EditConfig
from tests import tiny_mmdit

FAMILIES = tuple(tiny_mmdit.FAMILIES)
SD3 = ("sd3", "sd35_medium")


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    with torch.inference_mode(False):
        return {name: build(tmp_path_factory.mktemp(name)) for name, build in tiny_mmdit.FAMILIES.items()}


@pytest.fixture(scope="module")
def priors(pipelines):
    return {name: MMDiTPrior.from_pipeline(pipe, f"tiny {name}") for name, pipe in pipelines.items()}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def prior(family, priors):
    return priors[family]


def latent(batch=2, seed=0, size=(8, 12)):
    return torch.randn(batch, 16, *size, generator=torch.Generator().manual_seed(seed))


def parts(pipe):
    """The arguments of MMDiTPrior, as lists that a test may change."""
    endings = ("", "_2", "_3") if hasattr(pipe, "text_encoder_3") else ("", "_2")
    tokenizers = [getattr(pipe, "tokenizer" + ending) for ending in endings]
    return pipe.transformer, pipe.vae, tokenizers, [getattr(pipe, "text_encoder" + e) for e in endings], pipe.scheduler


def encoded(pipe, prompts):
    """(embeds, pooled) as the pipeline itself makes them."""
    if isinstance(pipe, FluxPipeline):
        most = 512 if pipe.transformer.config.guidance_embeds else 256
        return pipe.encode_prompt(prompts, device="cpu", max_sequence_length=most)[:2]
    out = pipe.encode_prompt(prompts, prompts, prompts, device="cpu", do_classifier_free_guidance=False)
    return out[0], out[2]


# What it predicts


@torch.inference_mode()
def test_a_prediction_is_the_pipelines_own_velocity_as_noise(family, pipelines, priors):
    pipe, prior = pipelines[family], priors[family]
    z_t, t, prompts = latent(), torch.tensor([0.2, 0.7]), ["a cat", "a dog with a hat"]
    embeds, pooled = encoded(pipe, prompts)
    text = {"encoder_hidden_states": embeds, "pooled_projections": pooled}
    if family in SD3:
        velocity = pipe.transformer(z_t, timestep=t * 1000, **text).sample
    else:
        packed = pipe._pack_latents(z_t, 2, 16, 8, 12)
        places = {
            "img_ids": pipe._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32),
            "txt_ids": torch.zeros(embeds.shape[1], 3),
        }
        told = torch.ones(2) if family == "flux_dev" else None
        out = pipe.transformer(packed, timestep=t, guidance=told, **text, **places).sample
        velocity = pipe._unpack_latents(out, 64, 96, 8)
    expected = z_t + (1 - t.view(2, 1, 1, 1)) * velocity
    found = prior.predict(z_t, t, prior.encode_text(prompts))
    assert found.eps.dtype == torch.float32 and found.maps is None
    torch.testing.assert_close(found.eps, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_text_is_the_pipelines_own(family, pipelines, priors):
    prompts = ["a red cat with a top-hat", ""]
    embeds, pooled = encoded(pipelines[family], prompts)
    text = priors[family].encode_text(prompts)
    assert text.prompts == tuple(prompts)
    torch.testing.assert_close(text.embeds, embeds)
    torch.testing.assert_close(text.pooled, pooled)


@torch.inference_mode()
def test_the_prediction_depends_on_prompt_time_and_latent(prior):
    texts = prior.encode_text(["a cat", "a red car on grass"])
    z_t, t = latent(1), torch.tensor([0.5])
    eps = prior.predict(z_t, t, texts[0]).eps
    for other in (
        prior.predict(z_t, t, texts[1]).eps,
        prior.predict(z_t, torch.tensor([0.9]), texts[0]).eps,
        prior.predict(latent(1, seed=1), t, texts[0]).eps,
    ):
        assert (eps - other).abs().max() > 1e-4


@torch.inference_mode()
def test_a_batch_is_its_rows(prior):
    z_t, t, texts = latent(3), torch.tensor([0.1, 0.5, 0.9]), prior.encode_text(["a cat", "a dog", ""])
    together = prior.predict(z_t, t, texts).eps
    for i in range(3):
        alone = prior.predict(z_t[i : i + 1], t[i : i + 1], texts[i]).eps
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_one_text_and_one_time_serve_the_whole_batch(prior):
    z_t, text = latent(3), prior.encode_text(["a cat"])
    once = prior.predict(z_t, torch.tensor([0.4]), text).eps
    assert torch.equal(once, prior.predict(z_t, torch.full((3,), 0.4), text.repeat(3)).eps)


@torch.inference_mode()
def test_a_pure_noise_says_itself(prior):
    # At sigma = 1 the picture has no share in z_t, so that whatever the network says, eps is z_t.
    z_t = latent(1)
    assert torch.equal(prior.predict(z_t, torch.ones(1), prior.encode_text(["a cat"])).eps, z_t)


@torch.inference_mode()
def test_a_probe_changes_no_output_and_leaves_no_trace(prior):
    z_t, t, text = latent(), torch.tensor([0.5]), prior.encode_text(["a cat", ""])
    before = dict(prior.transformer.attn_processors)
    plain = prior.predict(z_t, t, text)
    probe = SeveralProbes([AttentionProbe((1, 2), slice(0, 1)), AttentionProbe((3,), slice(1, 2))])
    heard = prior.predict(z_t, t, text, probe)
    assert torch.equal(plain.eps, heard.eps)
    assert [maps.refined.shape for maps in heard.maps] == [(1, 2, 4, 6), (1, 1, 4, 6)]
    assert all(prior.transformer.attn_processors[name] is own for name, own in before.items())


def test_autograd_reaches_the_latent_and_never_the_weights(prior):
    text = prior.encode_text(["a cat"])
    z = latent(1).requires_grad_()
    prior.predict(z, torch.tensor([0.5]), text).eps.square().sum().backward()
    assert z.grad is not None and z.grad.abs().sum() > 0
    networks = (prior.transformer, prior.vae, prior.text_encoders)
    assert not any(weight.requires_grad for network in networks for weight in network.parameters())
    image = torch.rand(1, 3, 32, 32).requires_grad_()
    prior.encode(image).sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0


def test_misfits_are_refused(priors):
    prior = priors["sd3"]
    text = prior.encode_text(["a cat", "a dog"])
    with pytest.raises(ValueError, match="batch of 3"):
        prior.predict(latent(3), torch.full((3,), 0.5), text)
    with pytest.raises(ValueError, match=r"\[B, 16, h, w\]"):
        prior.predict(torch.zeros(2, 4, 8, 8), torch.tensor([0.5]), text)
    with pytest.raises(ValueError, match="multiples of 2"):
        prior.predict(latent(2, size=(7, 8)), torch.tensor([0.5]), text)
    with pytest.raises(ValueError, match="at most 384 pixels a side"):  # 24 patches of 16 pixels
        prior.predict(latent(2, size=(50, 8)), torch.tensor([0.5]), text)
    with pytest.raises(ValueError, match="its own text"):
        prior.predict(latent(2), torch.tensor([0.5]), Text(text.prompts, text.embeds, None))
    with pytest.raises(ValueError, match="its own text"):
        priors["flux_dev"].predict(latent(2), torch.tensor([0.5]), priors["flux_schnell"].encode_text(["a", "b"]))


def test_other_networks_and_schedulers_are_refused(pipelines):
    transformer, vae, tokenizers, encoders, scheduler = parts(pipelines["flux_dev"])
    with pytest.raises(ValueError, match="flow-matching scheduler; it has a DDIMScheduler"):
        MMDiTPrior("x", transformer, vae, tokenizers, encoders, DDIMScheduler(), "cpu")
    with pytest.raises(ValueError, match="CLIP and a T5"):
        MMDiTPrior("x", transformer, vae, [tokenizers[0], None], [encoders[0], None], scheduler, "cpu")
    fill = copy.deepcopy(transformer)
    fill.register_to_config(in_channels=384)  # FLUX.1 Fill
    with pytest.raises(ValueError, match="inpainting"):
        MMDiTPrior("x", fill, vae, tokenizers, encoders, scheduler, "cpu")
    transformer, vae, tokenizers, encoders, scheduler = parts(pipelines["sd3"])
    with pytest.raises(ValueError, match="at least one of its three"):
        MMDiTPrior("x", transformer, vae, [None] * 3, [None] * 3, scheduler, "cpu")


# What its numbers are


@pytest.mark.parametrize(
    ("name", "places", "shift"), [("sd3", 77 + 256, 3.0), ("flux_dev", 512, None), ("flux_schnell", 256, 1.0)]
)
def test_sizes_are_read_from_the_configs(name, places, shift, priors):
    prior = priors[name]
    assert (prior.factor, prior.multiple, prior.native, prior.channels) == (8, 16, 128, 16)
    assert prior.max_tokens == places and prior.schedule.prediction == "flow"
    assert prior.name == f"tiny {name}" and prior.dtype == torch.float32
    if shift is not None:
        assert prior.schedule.shift == shift
    else:
        assert prior.schedule.shift(4096) == pytest.approx(2.71828**1.15, rel=1e-5)


def test_packing_is_the_pipelines_own_and_can_be_undone():
    z = latent(2, size=(6, 10))
    tokens = pack(z)
    assert torch.equal(tokens, FluxPipeline._pack_latents(z, 2, 16, 6, 10))
    assert torch.equal(unpack(tokens, (6, 10)), z)
    assert torch.equal(FluxPipeline._unpack_latents(tokens, 48, 80, 8), z)


@torch.inference_mode()
def test_latents_are_shifted_and_scaled(prior, family, pipelines):
    image, config = torch.rand(1, 3, 32, 64), pipelines[family].vae.config
    assert config.shift_factor > 0
    mean = pipelines[family].vae.encode(image * 2 - 1).latent_dist.mean
    z = prior.encode(image)
    torch.testing.assert_close(z, (mean - config.shift_factor) * config.scaling_factor)
    torch.testing.assert_close(prior.decode(z), (pipelines[family].vae.decode(mean).sample / 2 + 0.5).clamp(0, 1))
    # each is padded by one, for the strided convolution that it goes into
    assert [tuple(f.shape[-2:]) for f in prior.encoder_features(image)] == [(33, 65), (17, 33), (9, 17)]


@torch.inference_mode()
def test_network_features_lie_on_the_tokens_grid(prior):
    found = prior.network_features(latent(), torch.tensor([0.3]), prior.encode_text(["a cat"]))
    assert all(each.shape[0] == 2 and each.shape[2:] == (4, 6) for each in found) and len(found) == 2
    assert not any(block._forward_hooks for block in prior.transformer.transformer_blocks)


# The distilled guidance


@torch.inference_mode()
def test_flux_dev_is_told_of_a_guidance_that_is_no_cfg(priors):
    prior, z_t, t = priors["flux_dev"], latent(), torch.tensor([0.5])
    text = prior.encode_text(["a cat"])
    assert text.guidance is not None and text.guidance.tolist() == [1.0]
    plain, more = prior.predict(z_t, t, text).eps, prior.predict(z_t, t, text.guided(5.5)).eps
    assert (plain - more).abs().max() > 1e-4
    both = Text.cat(text, text.guided(5.5))  # one forward pass, two guidances
    assert both.guidance is not None and both.guidance.tolist() == [1.0, 5.5]
    together = prior.predict(z_t, t, both).eps
    torch.testing.assert_close(together[:1], plain[:1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[1:], more[1:], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_guidance_of_its_own_is_a_setting_of_the_model(pipelines):
    told = MMDiTPrior("told", *parts(pipelines["flux_dev"]), "cpu", distilled_guidance=3.5)
    assert told.encode_text(["a", "b"]).guidance.tolist() == [3.5, 3.5]


@pytest.mark.parametrize("name", ["sd3", "flux_schnell"])
def test_other_models_take_none(name, priors):
    text = priors[name].encode_text(["a cat"])
    assert text.guidance is None
    with pytest.raises(ValueError, match="no distilled guidance"):
        text.guided(3.5)
    with pytest.raises(ValueError, match="same model"):
        Text.cat(text, priors["flux_dev"].encode_text(["a cat"]))


# Text encoders that are not there


@torch.inference_mode()
@pytest.mark.parametrize("missing", [(2,), (0,), (1,), (0, 1), (0, 2)])
def test_zeros_stand_for_a_missing_encoder(missing, pipelines, priors):
    transformer, vae, tokenizers, encoders, scheduler = parts(pipelines["sd3"])
    for i in missing:
        tokenizers[i] = encoders[i] = None
    prior = MMDiTPrior("part", transformer, vae, tokenizers, encoders, scheduler, "cpu")
    whole, part = (each.encode_text(["a red cat"]) for each in (priors["sd3"], prior))
    assert part.embeds.shape == whole.embeds.shape and part.pooled.shape == whole.pooled.shape
    embeds, pooled = whole.embeds.clone(), whole.pooled.clone()
    for i, (columns, summary) in enumerate([(slice(0, 16), slice(0, 16)), (slice(16, 40), slice(16, 40))]):
        if i in missing:
            embeds[:, :77, columns] = 0
            pooled[:, summary] = 0
    if 2 in missing:
        embeds[:, 77:] = 0
    assert torch.equal(part.embeds, embeds) and torch.equal(part.pooled, pooled)
    assert prior.max_tokens == 333 == len(prior.tokenize("a red cat").ids)
    assert torch.isfinite(prior.predict(latent(1), torch.tensor([0.5]), part).eps).all()


@torch.inference_mode()
def test_without_t5_text_is_still_the_pipelines_own(tmp_path):
    pipe = tiny_mmdit.sd3(tmp_path)
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    prior = MMDiTPrior.from_pipeline(pipe)
    embeds, pooled = encoded(pipe, ["a cat"])
    text = prior.encode_text(["a cat"])
    torch.testing.assert_close(text.embeds, embeds)
    torch.testing.assert_close(text.pooled, pooled)


# Tokens


def spans(prior, prompt):
    return [prompt[a:b] for a, b in prior.tokenize(prompt).offsets if (a, b) != (0, 0)]


def test_flux_reads_words_with_t5(priors):
    for name in ("flux_dev", "flux_schnell"):
        tokens = priors[name].tokenize("a  red cat")
        assert tokens.offsets[:4] == ((0, 1), (3, 6), (7, 10), (0, 0)) and len(tokens.ids) == priors[name].max_tokens
        assert spans(priors[name], "a Cat") == ["a", "C", "C", "a", "t"]  # a word's start and an unknown capital


def test_sd3_reads_words_twice(priors):
    tokens = priors["sd3"].tokenize("a red cat")
    assert tokens.offsets[:5] == ((0, 0), (0, 1), (2, 5), (6, 9), (0, 0))
    assert tokens.offsets[77:81] == ((0, 1), (2, 5), (6, 9), (0, 0))
    assert spans(priors["sd3"], "a red cat") == ["a", "red", "cat"] * 2


def test_ids_are_what_the_encoders_read(priors, pipelines):
    pipe, prompt = pipelines["sd3"], "a cat in a hat"
    clip = pipe.tokenizer(prompt, padding="max_length", max_length=77).input_ids
    t5 = pipe.tokenizer_3(prompt, padding="max_length", max_length=256).input_ids
    assert list(priors["sd3"].tokenize(prompt).ids) == clip + t5


def test_words_that_do_not_fit_are_named(priors, pipelines):
    long = " ".join(["cat"] * 100)
    assert priors["sd3"].tokenize(long + " dog").cut == "", "T5 has read what CLIP has not"
    assert priors["flux_dev"].tokenize(" ".join(["cat"] * 511)).cut == ""
    assert priors["flux_dev"].tokenize(" ".join(["cat"] * 511) + "  dog, hat ").cut == "dog, hat"
    transformer, vae, tokenizers, encoders, scheduler = parts(pipelines["sd3"])
    alone = MMDiTPrior("clip", transformer, vae, [*tokenizers[:2], None], [*encoders[:2], None], scheduler, "cpu")
    assert alone.tokenize(" ".join(["cat"] * 75) + " dog hat").cut == "dog hat"


def test_prompts_come_as_a_list_and_are_encoded_once(priors):
    prior = priors["flux_dev"]
    for wrong in ("a cat", []):
        with pytest.raises(ValueError, match="list of one or more prompts"):
            prior.encode_text(wrong)
    calls = []
    handle = prior.text_encoders[1].register_forward_hook(lambda *_: calls.append(1))
    prior.encode_text(["a house by the sea", "a house by the sea"])
    prior.encode_text(["a house by the sea"])
    handle.remove()
    assert len(calls) == 1


def test_text_encoded_under_inference_mode_serves_autograd(pipelines):
    prior = MMDiTPrior.from_pipeline(pipelines["sd35_medium"])
    with torch.inference_mode():
        prior.encode_text(["a bird"])
    z = latent(1).requires_grad_()
    prior.predict(z, torch.tensor([0.5]), prior.encode_text(["a bird"])).eps.sum().backward()
    assert z.grad is not None


# Precision and memory


@torch.inference_mode()
@pytest.mark.parametrize("name", ["sd35_medium", "flux_dev"])
def test_half_precision_weights_predict_in_float32_nearly_the_same(name, tmp_path):
    exact = MMDiTPrior.from_pipeline(tiny_mmdit.FAMILIES[name](tmp_path / "a"))
    pipe = tiny_mmdit.FAMILIES[name](tmp_path / "b")
    pipe.to(torch.bfloat16)
    half = MMDiTPrior.from_pipeline(pipe)
    assert half.dtype == torch.bfloat16 and half.vae.dtype == torch.float32  # the config says that it overflows
    z_t, t = latent(), torch.tensor([0.3, 0.8])
    found = half.predict(z_t, t, half.encode_text(["a cat"]))
    expected = exact.predict(z_t, t, exact.encode_text(["a cat"]))
    assert found.eps.dtype == torch.float32
    assert (found.eps - expected.eps).norm() < 0.05 * expected.eps.norm()


@torch.inference_mode()
def test_offload_keeps_one_network_at_a_time_and_changes_nothing(pipelines, priors):
    prior = MMDiTPrior("o", *parts(pipelines["flux_dev"]), "cpu", offload=True)
    z = prior.encode(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert prior.resident is prior.vae
    text = prior.encode_text(["a cat"])
    assert prior.resident is prior.text_encoders
    eps = prior.predict(z, torch.tensor([0.5]), text).eps
    assert prior.resident is prior.transformer
    whole = priors["flux_dev"]
    assert torch.equal(eps, whole.predict(z, torch.tensor([0.5]), whole.encode_text(["a cat"])).eps)


# Methods


def prompts_for(prior, source, target):
    text = prior.encode_text([target, source, "", ""])
    return Prompts(text[0], text[1], text[2], text[3])


@torch.inference_mode()
def test_equal_prompts_at_equal_latents_move_nothing(prior):
    z = latent(1)
    same = prompts_for(prior, "a cat", "a cat")

    def draw():
        return prior.schedule.draw(z, torch.Generator().manual_seed(0), 0.2, 0.8)

    step = Step(0, 10, z, z, same, draw)
    assert DDS()(prior, step).step.abs().max() < 1e-5
    update = LUSD(retries=1)(prior, step)
    assert not update.step.any() and float(update.stats["rejected"]) == 2


@torch.inference_mode()
def test_updates_are_their_formulas(prior):
    # d_eps = (1 - sigma) d_v enters every method through the one convention; here the formulas are written out again.
    z, z_src = latent(1, 1), latent(1, 2)
    prompts = prompts_for(prior, "a cat", "a dog")
    t, eps = torch.tensor([0.6]), latent(1, 3)
    from sdsedit.schedule import Draw

    step = Step(0, 10, z, z_src, prompts, lambda: Draw(t, eps))
    z_t, z_t_src = 0.4 * z + 0.6 * eps, 0.4 * z_src + 0.6 * eps

    def said(z_noisy, prompt):
        return prior.predict(z_noisy, t, prior.encode_text([prompt])).eps

    empty, empty_src = said(z_t, ""), said(z_t_src, "")
    target, source = said(z_t, "a dog"), said(z_t_src, "a cat")
    sds = 0.36 * (empty + 100 * (target - empty) - eps)
    torch.testing.assert_close(SDS()(prior, step).step, 0.01 * sds, atol=2e-5, rtol=1e-3)
    dds = empty + 7.5 * (target - empty) - empty_src - 7.5 * (source - empty_src)
    torch.testing.assert_close(DDS()(prior, step).step, 0.0488 * dds, atol=2e-5, rtol=1e-3)
    e = target - said(z_t, "a cat")
    d = 0.98 * e + 0.02 * (z - z_src)
    lusd = 0.488 * (0.01 + 0.14 / (1 + torch.tensor(-5.0).exp())) * d / d.std(correction=0)
    torch.testing.assert_close(LUSD(tau=0)(prior, step).step, lusd, atol=2e-5, rtol=2e-3)
    (found, _), _ = predict(prior, t, (z_t, prompts.target), (z_t, prompts.source))
    torch.testing.assert_close(found, target, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["lusd", "lusd-fast", "dds", "sds", "flowedit"])
def test_an_edit_runs_from_picture_to_picture(method, family, priors):
    prior = priors[family]
    picture = torch.rand(1, 3, 50, 70, generator=torch.Generator().manual_seed(0))
    request = Edit(target="a cat with a red crown", source="a cat")
    result = edit(picture, prior, request, EditConfig(method=method, steps=3, size=64))
    assert result.image.shape == picture.shape and result.steps_done == 3 and not result.stopped
    assert not torch.equal(result.z, result.z_src) and result.z.isfinite().all()
    if method.startswith("lusd"):
        assert result.words == ("red", "crown")
        assert result.heatmap.shape == (1, 1, 50, 70) and result.heatmap.min() >= 0 and result.heatmap.max() <= 1
        assert 0 < result.heatmap.mean() < 1
        kept = (result.mask == 0).expand_as(picture)
        assert torch.equal(result.image[kept], picture[kept])


def test_a_persons_mask_holds_on_a_transformer(priors):
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:40, 16:40] = 1
    request = Edit(target="a dog", source="a cat", mask=mask)
    result = edit(picture, priors["flux_dev"], request, EditConfig(steps=2, size=64))
    outside = (mask == 0).expand_as(picture)
    assert torch.equal(result.image[outside], picture[outside])


def test_the_solver_plays_no_part(pipelines):
    # Draws are uniform in sigma: the shift belongs to samplers.
    transformer, vae, tokenizers, encoders, _ = parts(pipelines["sd3"])
    others = FlowMatchEulerDiscreteScheduler(shift=1.0), FlowMatchEulerDiscreteScheduler(shift=7.0)
    z_t = latent(1)
    one, other = (MMDiTPrior("x", transformer, vae, tokenizers, encoders, each, "cpu") for each in others)
    assert torch.equal(one.schedule.timestep(torch.tensor([0.3])), other.schedule.timestep(torch.tensor([0.3])))
    with torch.inference_mode():
        text = one.encode_text(["a cat"])
        t = torch.tensor([0.3])
        assert torch.equal(one.predict(z_t, t, text).eps, other.predict(z_t, t, text).eps)
