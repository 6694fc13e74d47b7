"""prior.unet: a prior says what its diffusers network says, as noise; text, tokens and latents mean the same."""

from __future__ import annotations

import copy
import unicodedata

import pytest
import torch
from diffusers import AutoencoderTiny
from hypothesis import given, settings
from hypothesis import strategies as st

from sdsedit.attention.probe import AttentionProbe
from sdsedit.prior import UNetPrior
from tests import tiny

FAMILIES = tuple(tiny.FAMILIES)


def latent(prior: UNetPrior, batch: int = 2, seed: int = 0, size: tuple[int, int] = (16, 16)) -> torch.Tensor:
    return torch.randn(batch, prior.channels, *size, generator=torch.Generator().manual_seed(seed))


def picture(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


# What it predicts


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_prediction_is_the_networks_own(family, tiny_pipeline, tiny_prior):
    pipe, prior = tiny_pipeline(family), tiny_prior(family)
    z_t, t, prompts = latent(prior, size=(16, 24)), torch.tensor([0.2, 0.7]), ["a cat", "a dog with a hat"]
    index = torch.tensor([200, 700])
    encoded = pipe.encode_prompt(
        prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )  # embeds first, and for SDXL the pooled ones third
    added = None
    if "xl" in family or "koala" in family:
        sides = [float(16 * 8), float(24 * 8)]
        added = {"text_embeds": encoded[2], "time_ids": torch.tensor([[*sides, 0, 0, *sides]] * 2)}
    expected = pipe.unet(z_t, index, encoder_hidden_states=encoded[0], added_cond_kwargs=added).sample
    if pipe.scheduler.config.prediction_type == "v_prediction":
        abar = pipe.scheduler.alphas_cumprod[index].view(2, 1, 1, 1)
        expected = abar.sqrt() * expected + (1 - abar).sqrt() * z_t
    found = prior.predict(z_t, t, prior.encode_text(prompts))
    assert found.eps.dtype == torch.float32 and found.maps is None
    torch.testing.assert_close(found.eps, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_prediction_depends_on_prompt_time_and_latent(any_prior):
    texts = any_prior.encode_text(["a cat", "a red car on grass"])
    z_t, t = latent(any_prior, 1), torch.tensor([0.5])
    eps = any_prior.predict(z_t, t, texts[0]).eps
    for other in (
        any_prior.predict(z_t, t, texts[1]).eps,
        any_prior.predict(z_t, torch.tensor([0.9]), texts[0]).eps,
        any_prior.predict(latent(any_prior, 1, seed=1), t, texts[0]).eps,
    ):
        assert (eps - other).abs().max() > 1e-4


@torch.inference_mode()
def test_a_batch_is_its_rows(any_prior):
    z_t, t, texts = latent(any_prior, 3), torch.tensor([0.1, 0.5, 0.9]), any_prior.encode_text(["a cat", "a dog", ""])
    together = any_prior.predict(z_t, t, texts).eps
    for i in range(3):
        alone = any_prior.predict(z_t[i : i + 1], t[i : i + 1], texts[i]).eps
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_one_text_and_one_time_serve_the_whole_batch(any_prior):
    z_t, text = latent(any_prior, 3), any_prior.encode_text(["a cat"])
    once = any_prior.predict(z_t, torch.tensor([0.4]), text).eps
    assert torch.equal(once, any_prior.predict(z_t, torch.full((3,), 0.4), text.repeat(3)).eps)


def test_misfits_are_refused(sd15_prior, sdxl_prior):
    text = sd15_prior.encode_text(["a cat", "a dog"])
    with pytest.raises(ValueError, match="batch of 3"):
        sd15_prior.predict(latent(sd15_prior, 3), torch.full((3,), 0.5), text)
    with pytest.raises(ValueError, match="batch of 2"):
        sd15_prior.predict(latent(sd15_prior, 2), torch.full((3,), 0.5), text)
    with pytest.raises(ValueError, match=r"\[B, 4, h, w\]"):
        sd15_prior.predict(torch.zeros(2, 3, 16, 16), torch.tensor([0.5]), text)
    with pytest.raises(ValueError, match="pooled"):
        sdxl_prior.predict(latent(sdxl_prior, 2), torch.tensor([0.5]), text)


def test_a_probe_surrounds_the_forward_pass_and_changes_nothing(any_prior):
    class Listener:
        """Counts calls of the network while attached."""

        def __init__(self):
            self.seen, self.handle = [], None

        def attach(self, network, batch, latent_size):
            self.handle = network.register_forward_hook(
                lambda module, args, output: self.seen.append((batch, latent_size))
            )
            return self

        def __enter__(self):
            return None

        def __exit__(self, *error):
            self.handle.remove()

        def collect(self):
            return tuple(self.seen)

    z_t, t, text = latent(any_prior, size=(16, 32)), torch.tensor([0.5]), any_prior.encode_text(["a cat"])
    with torch.inference_mode():
        plain = any_prior.predict(z_t, t, text)
        heard = any_prior.predict(z_t, t, text, Listener())
    assert heard.maps == ((2, (16, 32)),) and torch.equal(plain.eps, heard.eps)
    assert not any_prior.unet._forward_hooks


def test_autograd_reaches_the_latent_and_never_the_weights(any_prior):
    text = any_prior.encode_text(["a cat"])
    z = latent(any_prior, 1).requires_grad_()
    any_prior.predict(z, torch.tensor([0.5]), text).eps.square().sum().backward()
    assert z.grad is not None and z.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in any_prior.unet.parameters())
    assert not any_prior.predict(z.detach(), torch.tensor([0.5]), text).eps.requires_grad
    image = picture(any_prior.multiple, any_prior.multiple).requires_grad_()
    any_prior.encode(image).sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0


def test_networks_are_frozen(any_prior):
    for network in (any_prior.unet, any_prior.vae, any_prior.text_encoders):
        assert not network.training and not any(weight.requires_grad for weight in network.parameters())


# What its numbers are


@pytest.mark.parametrize(
    ("family", "factor", "multiple", "max_tokens"),
    [
        ("sd15", 8, 64, 77),
        ("sd21", 8, 64, 77),
        ("sdxl", 8, 32, 77),
        ("koala_700m", 8, 32, 77),
        ("builtin_like", 4, 16, 32),
    ],
)
def test_sizes_are_read_from_the_configs(family, factor, multiple, max_tokens, tiny_prior):
    prior = tiny_prior(family)
    assert (prior.factor, prior.multiple, prior.max_tokens) == (factor, multiple, max_tokens)
    assert prior.native == 128 and prior.channels == 4 and prior.dtype == torch.float32
    assert prior.name == f"tiny {family}" and prior.device == torch.device("cpu")


def test_koala_700m_has_no_middle_block(tiny_prior):
    assert tiny_prior("koala_700m").unet.mid_block is None and tiny_prior("koala_1b").unet.mid_block is not None


# Pictures and latents


@torch.inference_mode()
def test_encoding_is_the_scaled_posterior_mean(any_prior, tiny_pipeline):
    image = picture(any_prior.multiple, 2 * any_prior.multiple, batch=2)
    z = any_prior.encode(image)
    assert z.shape == (2, 4, any_prior.multiple // any_prior.factor, 2 * any_prior.multiple // any_prior.factor)
    vae = any_prior.vae
    expected = vae.encode(2 * image - 1).latent_dist.mode() * vae.config.scaling_factor
    torch.testing.assert_close(z, expected)
    assert torch.equal(z, any_prior.encode(image))  # the mean, no sample
    back = any_prior.decode(z)
    assert back.shape == image.shape and back.dtype == torch.float32 and back.min() >= 0 and back.max() <= 1
    raw = vae.decode(z / vae.config.scaling_factor).sample / 2 + 0.5
    torch.testing.assert_close(back, raw.clamp(0, 1))


def test_shift_is_part_of_the_latent_space(sd15_prior, tiny_pipeline):
    pipe, image = tiny_pipeline("sd15"), picture(64, 64)
    vae = copy.deepcopy(pipe.vae)
    vae.register_to_config(shift_factor=0.25)
    shifted = UNetPrior("shifted", pipe.unet, vae, [pipe.tokenizer], [pipe.text_encoder], pipe.scheduler, "cpu")
    with torch.inference_mode():
        z = shifted.encode(image)
        torch.testing.assert_close(z, sd15_prior.encode(image) - 0.25 * pipe.vae.config.scaling_factor)
        torch.testing.assert_close(shifted.decode(z), sd15_prior.decode(sd15_prior.encode(image)))


def test_a_tiny_autoencoder_speaks_the_same_ranges(tiny_pipeline):
    torch.manual_seed(0)
    pipe = tiny_pipeline("sd15")
    vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    prior = UNetPrior("taesd", pipe.unet, vae, [pipe.tokenizer], [pipe.text_encoder], pipe.scheduler, "cpu")
    image = picture(64, 128)
    with torch.inference_mode():
        z = prior.encode(image)
        assert prior.factor == 8 and z.shape == (1, 4, 8, 16)
        # EncoderTiny and DecoderTiny work in 0..1 inside, and speak -1..1 outside as AutoencoderKL does
        torch.testing.assert_close(z, vae.encoder.layers(image))
        torch.testing.assert_close(prior.decode(z), vae.decoder.layers(torch.tanh(z / 3) * 3).clamp(0, 1))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 3, 60, 64), (1, 3, 64, 0)])
def test_other_pictures_are_refused(sd15_prior, shape):
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\] with sides in multiples of 8"):
        sd15_prior.encode(torch.zeros(shape))


def test_a_half_precision_autoencoder_that_overflows_runs_in_float32(tmp_path):
    pipe = tiny.sdxl(tmp_path)
    pipe.to(torch.float16)
    prior = UNetPrior.from_pipeline(pipe, "half")
    assert prior.dtype == torch.float16 and prior.vae.dtype == torch.float32
    assert pipe.vae.dtype == torch.float16, "the pipeline keeps its own"
    assert prior.encode(picture(64, 64)).dtype == torch.float32
    text = prior.encode_text(["a cat"])
    assert text.embeds.dtype == torch.float16 and text.pooled is not None and text.pooled.dtype == torch.float16


@torch.inference_mode()
def test_half_precision_weights_predict_in_float32_nearly_the_same(tmp_path):
    exact = UNetPrior.from_pipeline(tiny.sdxl(tmp_path / "a"))
    pipe = tiny.sdxl(tmp_path / "b")
    pipe.to(torch.bfloat16)
    half = UNetPrior.from_pipeline(pipe)
    z_t, t = latent(exact), torch.tensor([0.3, 0.8])
    found = half.predict(z_t, t, half.encode_text(["a cat"])).eps
    expected = exact.predict(z_t, t, exact.encode_text(["a cat"])).eps
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.05 * expected.norm()


# Text


def test_text_is_encoded_once(sd15_prior):
    first, again = sd15_prior.encode_text(["a cat in a tree"]), sd15_prior.encode_text(["a cat in a tree", "a dog"])
    assert again.prompts == ("a cat in a tree", "a dog") and torch.equal(first.embeds, again.embeds[:1])
    calls = []
    handle = sd15_prior.text_encoders[0].register_forward_hook(lambda *_: calls.append(1))
    sd15_prior.encode_text(["a dog", "a cat in a tree", "a dog"])
    sd15_prior.encode_text(["a house", "a house"])
    handle.remove()
    assert len(calls) == 1


def test_the_cache_of_texts_is_bounded(sd15_prior):
    many = [f"a cat {i}" for i in range(80)]
    assert len(sd15_prior.encode_text(many)) == 80
    assert len(sd15_prior._texts) == 64


def test_text_encoded_under_inference_mode_serves_autograd(tiny_pipeline):
    prior = UNetPrior.from_pipeline(tiny_pipeline("sdxl"))
    with torch.inference_mode():
        prior.encode_text(["a bird", ""])
    z = latent(prior, 1).requires_grad_()
    prior.predict(z, torch.tensor([0.5]), prior.encode_text(["a bird"])).eps.sum().backward()
    prior.predict(z, torch.tensor([0.5]), prior.encode_text([""])).eps.sum().backward()
    assert z.grad is not None


def test_the_empty_prompt_of_sdxl_is_zero(sdxl_prior, sd15_prior):
    empty = sdxl_prior.encode_text([""])
    assert not empty.embeds.any() and empty.pooled is not None and not empty.pooled.any()
    assert sdxl_prior.encode_text(["a cat"]).embeds.any() and sd15_prior.encode_text([""]).embeds.any()


def test_prompts_come_as_a_list(sd15_prior):
    for wrong in ("a cat", []):
        with pytest.raises(ValueError, match="list of one or more prompts"):
            sd15_prior.encode_text(wrong)


# Tokens


def test_every_known_word_is_one_token(sd15_prior):
    for word in tiny.WORDS:
        assert sd15_prior.tokenize(word).offsets[1:3] == ((0, len(word)), (0, 0)), word


def spans(prior: UNetPrior, prompt: str) -> list[str]:
    return [prompt[a:b] for a, b in prior.tokenize(prompt).offsets if (a, b) != (0, 0)]


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a red cat", ["a", "red", "cat"]),
        ("  A  Red\tCAT ,top-hat\n", ["A", "Red", "CAT", ",", "top", "-", "hat"]),
        ("a well-known cat's hat", ["a", "well", "-", "known", "cat", "'", "s", "hat"]),  # CLIP splits at 's
        ("2024 cat", ["2", "0", "2", "4", "cat"]),
        ("cat\u3000\u00a0dog\u2014hat", ["cat", "dog", "\u2014", "\u2014", "\u2014", "hat"]),  # three bytes, one dash
        ("\u00dc cat", ["\u00dc", "\u00dc", "cat"]),
        ("U\u0308 cat", ["U", "U", "cat"]),  # a letter and its mark are read as one letter, the first
        ("\U0001f431\U0001f431 dog", ["\U0001f431"] * 4 + ["\U0001f431"] * 4 + ["dog"]),
        ("", []),
    ],
)
def test_offsets_are_characters_of_the_prompt_as_written(sd15_prior, prompt, pieces):
    assert spans(sd15_prior, prompt) == pieces


@settings(deadline=None)
@given(st.text(max_size=30))
def test_offsets_are_in_order_inside_the_prompt_and_lose_nothing(sd15_prior, prompt):
    tokens = sd15_prior.tokenize(prompt)
    assert len(tokens.ids) == len(tokens.offsets) == sd15_prior.max_tokens
    assert tokens.offsets[0] == (0, 0)
    real = [span for span in tokens.offsets if span != (0, 0)]
    assert all(0 <= a < b <= len(prompt) for a, b in real)
    assert real == sorted(real)
    read = {i for a, b in real for i in range(a, b)}
    if not tokens.cut and unicodedata.is_normalized("NFC", prompt):
        assert all(letter.isspace() or i in read or not letter.isprintable() for i, letter in enumerate(prompt))


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_what_the_encoder_reads(family, tiny_pipeline, tiny_prior):
    prior, pipe = tiny_prior(family), tiny_pipeline(family)
    tokens = prior.tokenize("a cat in a hat")
    asked = pipe.tokenizer("a cat in a hat", padding="max_length", max_length=prior.max_tokens)
    assert list(tokens.ids) == asked.input_ids
    assert tokens.offsets[:7] == ((0, 0), (0, 1), (2, 5), (6, 8), (9, 10), (11, 14), (0, 0))


def test_words_that_do_not_fit_are_named(builtin_prior):
    fits = " ".join(["cat"] * 30)
    assert builtin_prior.tokenize(fits).cut == ""
    assert builtin_prior.tokenize(fits + "  dog, Top-hat ").cut == "dog, Top-hat"
    # a word that is read in part has not been read
    assert builtin_prior.tokenize(" ".join(["cat"] * 29) + " zzz dog").cut == "zzz dog"
    assert builtin_prior.tokenize(" ".join(["cat"] * 28) + " a zzz").cut == "zzz"
    assert builtin_prior.tokenize("z" * 100).cut == "z" * 100
    cut = builtin_prior.tokenize(fits + " dog")
    assert len(cut.ids) == 32 and cut.offsets[30] == (116, 119) and cut.offsets[31] == (0, 0)
    assert builtin_prior.encode_text([fits + " dog"]).embeds.shape == (1, 32, 16)


def test_a_very_long_prompt_is_bounded(sd15_prior, capfd):
    tokens = sd15_prior.tokenize("cat " * 25_000)
    assert len(tokens.ids) == 77 and len(tokens.cut.split()) == 25_000 - 75
    assert "longer than" not in capfd.readouterr().err


# Offload


def test_offload_keeps_one_network_at_a_time_and_changes_nothing(tmp_path):
    pipe = tiny.sd15(tmp_path)
    whole = UNetPrior.from_pipeline(pipe)
    prior = UNetPrior(
        "o", pipe.unet, pipe.vae, [pipe.tokenizer], [pipe.text_encoder], pipe.scheduler, "cpu", offload=True
    )
    assert prior.resident is None
    with torch.inference_mode():
        z = prior.encode(picture(64, 64))
        assert prior.resident is prior.vae
        text = prior.encode_text(["a cat"])
        assert prior.resident is prior.text_encoders
        eps = prior.predict(z, torch.tensor([0.5]), text).eps
        assert prior.resident is prior.unet
        prior.encode_text(["a cat"])
        assert prior.resident is prior.unet, "remembered text moves nothing"
        assert torch.equal(eps, whole.predict(z, torch.tensor([0.5]), whole.encode_text(["a cat"])).eps)
    assert whole.resident is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_offload_moves_networks_on_the_gpu(tmp_path):
    pipe = tiny.sd15(tmp_path)
    prior = UNetPrior(
        "o", pipe.unet, pipe.vae, [pipe.tokenizer], [pipe.text_encoder], pipe.scheduler, "cuda", offload=True
    )
    with torch.inference_mode():
        z = prior.encode(picture(64, 64).cuda())
        eps = prior.predict(z, torch.tensor([0.5], device="cuda"), prior.encode_text(["a cat"])).eps
    assert eps.device.type == "cuda"
    devices = [next(n.parameters()).device.type for n in (prior.text_encoders, prior.vae, prior.unet)]
    assert devices == ["cpu", "cpu", "cuda"]


# What it refuses


@torch.inference_mode()
def test_a_twin_has_the_same_weights_and_its_own_listeners(sd15_prior):
    twin = sd15_prior.twin()
    for mine, its in zip(sd15_prior.unet.parameters(), twin.unet.parameters(), strict=True):
        assert its is mine
    z_t, t, text = latent(sd15_prior), torch.tensor([0.3]), sd15_prior.encode_text(["a cat", "a dog"])
    wanted = sd15_prior.predict(z_t, t, text).eps
    with AttentionProbe((2,)).attach(sd15_prior.unet, batch=1, latent_size=(16, 16)):  # would refuse a batch of two
        assert torch.equal(twin.predict(z_t, t, text).eps, wanted)
        with pytest.raises(ValueError, match="batch of 2"):
            sd15_prior.predict(z_t, t, text)
    assert torch.equal(twin.decode(z_t), sd15_prior.decode(z_t))


def test_conditioned_networks_are_refused(tmp_path):
    pipe = tiny.sd15(tmp_path)
    pipe.unet.register_to_config(in_channels=9)
    with pytest.raises(ValueError, match="inpainting"):
        UNetPrior.from_pipeline(pipe)
