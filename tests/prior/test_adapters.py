"""prior.adapters: a LoRA is W + scale (alpha / r) B A in the layers that it names; a taught word is its vectors."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline
from safetensors.torch import save_file

from sdsedit.attention.words import changed_words
from sdsedit.errors import InputRefused
from sdsedit.io.record import model_record
from sdsedit.prior import load_prior
from sdsedit.prior.adapters import WithWords, add_lora, add_words, parse_lora
from tests import tiny, tiny_mmdit

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
TEXT = "encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    with torch.inference_mode(False):
        made = {
            "sd15": tiny.sd15(tmp_path_factory.mktemp("sd15")),
            "sdxl": tiny.sdxl(tmp_path_factory.mktemp("sdxl")),
            "flux": tiny_mmdit.flux_dev(tmp_path_factory.mktemp("flux")),
            "sd3": tiny_mmdit.sd3(tmp_path_factory.mktemp("sd3")),
        }
    for pipe in made.values():
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False)
    return made


def pair(weight, rank=2, seed=0):
    """(A, B) of a layer's shape."""
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *weight.shape[1:], generator=generator)
    up = torch.randn(weight.shape[0], rank, *(1,) * (weight.ndim - 2), generator=generator)
    return down, up


def networks(pipe):
    """Copies, to be changed."""
    main = "transformer" if hasattr(pipe, "transformer") else "unet"
    names = (main, "text_encoder", "text_encoder_2")
    return {name: copy.deepcopy(getattr(pipe, name)) for name in names if getattr(pipe, name, None) is not None}


def weight(network, path):
    return network.get_submodule(path).weight.detach()


@pytest.mark.parametrize("scale", [1.0, 0.5, -1.0])
def test_a_diffusers_lora_is_added_to_its_layer_and_no_other(scale, pipelines, tmp_path):
    parts, pipe = networks(pipelines["sd15"]), pipelines["sd15"]
    down, up = pair(weight(parts["unet"], LAYER))
    tensors = {f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=tensors, weight_name="lora.safetensors")
    assert add_lora(parts, str(tmp_path / "lora.safetensors"), scale) == 1
    torch.testing.assert_close(weight(parts["unet"], LAYER), weight(pipe.unet, LAYER) + scale * up @ down)
    other = LAYER.replace("attn1", "attn2")
    assert torch.equal(weight(parts["unet"], other), weight(pipe.unet, other))


def test_a_kohya_lora_has_an_alpha_a_convolution_and_a_text_encoder(pipelines, tmp_path):
    parts, pipe = networks(pipelines["sd15"]), pipelines["sd15"]
    tensors, expected = {}, {}
    for part, path, prefix in (("unet", LAYER, "lora_unet_"), ("text_encoder", TEXT, "lora_te_text_model_")):
        before = weight(getattr(pipe, part), path)
        down, up = pair(before)
        name = prefix + path.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
        expected[part, path] = before + 0.5 * up @ down  # alpha / rank
    before = weight(pipe.unet, CONV)
    down, up = pair(before)
    name = "lora_unet_" + CONV.replace(".", "_")
    tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
    expected["unet", CONV] = before + torch.einsum("or,rihw->oihw", up[..., 0, 0], down)
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "kohya.safetensors")
    assert add_lora(parts, str(tmp_path / "kohya.safetensors")) == 3
    for (part, path), wanted in expected.items():
        torch.testing.assert_close(weight(parts[part], path), wanted, msg=path)


def test_a_lora_of_sdxl_reaches_both_text_encoders(pipelines, tmp_path):
    parts, pipe = networks(pipelines["sdxl"]), pipelines["sdxl"]
    tensors, expected = {}, {}
    for number in (1, 2):
        part = "text_encoder" if number == 1 else "text_encoder_2"
        path = TEXT if number == 1 else "text_model." + TEXT
        before = weight(getattr(pipe, part), path)
        down, up = pair(before, seed=number)
        name = f"lora_te{number}_text_model_" + TEXT.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        expected[part, path] = before + up @ down
    save_file(tensors, tmp_path / "xl.safetensors")
    assert add_lora(parts, str(tmp_path / "xl.safetensors")) == 2
    for (part, path), wanted in expected.items():
        torch.testing.assert_close(weight(parts[part], path), wanted)


def test_a_lora_of_flux_in_either_writing(pipelines, tmp_path):
    path = "transformer_blocks.1.attn.to_q"
    before = weight(pipelines["flux"].transformer, path)
    down, up = pair(before)
    layers = {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
    FluxPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers, weight_name="a.safetensors")
    parts = networks(pipelines["flux"])
    assert add_lora(parts, str(tmp_path / "a.safetensors")) == 1
    torch.testing.assert_close(weight(parts["transformer"], path), before + up @ down)

    # kohya's: Black Forest Labs' names, with query, key and value in one
    joined = torch.cat([weight(pipelines["flux"].transformer, path.replace("to_q", f"to_{x}")) for x in "qkv"])
    down, up = pair(joined, seed=5)
    name = "lora_unet_double_blocks_1_img_attn_qkv"
    layers = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
    save_file(layers, tmp_path / "b.safetensors")
    parts = networks(pipelines["flux"])
    assert add_lora(parts, str(tmp_path / "b.safetensors")) == 3
    for x, part in zip("qkv", (up @ down).chunk(3), strict=True):
        own = path.replace("to_q", f"to_{x}")
        wanted = weight(pipelines["flux"].transformer, own) + part
        torch.testing.assert_close(weight(parts["transformer"], own), wanted, atol=1e-5, rtol=1e-5)


def test_half_precision_weights_are_added_to_in_float32(pipelines, tmp_path):
    parts = {"unet": copy.deepcopy(pipelines["sd15"].unet).to(torch.bfloat16)}
    down, up = pair(weight(parts["unet"], LAYER))
    save_file({f"unet.{LAYER}.lora_A.weight": down, f"unet.{LAYER}.lora_B.weight": up}, tmp_path / "a.safetensors")
    before = weight(parts["unet"], LAYER).clone()
    add_lora(parts, str(tmp_path / "a.safetensors"))
    wanted = (before.float() + up @ down).bfloat16()
    assert torch.equal(weight(parts["unet"], LAYER), wanted)


def test_loras_of_other_models_are_refused(pipelines, tmp_path):
    down, up = torch.randn(2, 7), torch.randn(9, 2)
    cases = {
        "shape": {f"unet.{LAYER}.lora_A.weight": down, f"unet.{LAYER}.lora_B.weight": up},
        "name": {"unet.no.such.layer.lora_A.weight": down, "unet.no.such.layer.lora_B.weight": up},
        "half": {f"unet.{LAYER}.lora_A.weight": down},
        "nothing": {"weight": down},
    }
    for name, tensors in cases.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(InputRefused, match=f"{name}.safetensors") as error:
            add_lora(networks(pipelines["sd15"]), str(tmp_path / f"{name}.safetensors"))
        assert "\n" not in str(error.value) and str(tmp_path) not in str(error.value)
    (tmp_path / "torn.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(InputRefused, match="cannot be read as a LoRA"):
        add_lora(networks(pipelines["sd15"]), str(tmp_path / "torn.safetensors"))
    for missing in ("missing.safetensors", "lora.bin"):
        with pytest.raises(InputRefused, match="no LoRA file"):
            add_lora(networks(pipelines["sd15"]), str(tmp_path / missing))


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.8", ("a.safetensors", 0.8)),
        ("x/a.safetensors:-1", ("x/a.safetensors", -1.0)),
        ("C:\\loras\\a.safetensors", ("C:\\loras\\a.safetensors", 1.0)),
        ("C:/loras/a.safetensors:2", ("C:/loras/a.safetensors", 2.0)),
    ],
)
def test_a_lora_may_carry_a_scale(given, parsed):
    assert parse_lora(given) == parsed


@pytest.mark.parametrize("given", ["a.safetensors:much", "a.safetensors:nan", "a.safetensors:11"])
def test_other_scales_are_refused(given):
    with pytest.raises(InputRefused, match="from -10 to 10"):
        parse_lora(given)


# Textual inversion


def vectors(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_a_word_is_its_vectors(pipelines, sd_folder, tmp_path):
    taught = vectors(2, 16)
    save_file({"<toy>": taught}, tmp_path / "any.safetensors")
    prior = load_prior(str(sd_folder), device="cpu", words=[str(tmp_path / "any.safetensors")])
    prompt = "a <toy> on grass"
    tokens = prior.tokenize(prompt)
    assert [prompt[a:b] for a, b in tokens.offsets[1:6]] == ["a", "<toy>", "<toy>", "on", "grass"]
    assert len(tokens.ids) == 77 and tokens.offsets[6] == (0, 0)
    table = prior.text_encoders[0].get_input_embeddings().weight
    assert torch.equal(table[list(tokens.ids[2:4])], taught)
    assert changed_words(prior.tokenize, "a cat on grass", prompt).tokens == (2, 3)
    with torch.no_grad():  # what the text encoder says is what it says of those vectors
        hidden = prior.encode_text([prompt]).embeds
        expected = prior.text_encoders[0](torch.tensor([tokens.ids])).last_hidden_state
    torch.testing.assert_close(hidden, expected)


def test_other_prompts_read_as_before(sd_folder, tmp_path):
    save_file({"emb_params": vectors(1, 16)}, tmp_path / "toy.safetensors")
    plain = load_prior(str(sd_folder), device="cpu")
    prior = load_prior(str(sd_folder), device="cpu", words=[str(tmp_path / "toy.safetensors")])
    long = " ".join(["cat"] * 75)
    for prompt in ("a red cat", "", long, long + " dog, hat"):
        assert prior.tokenize(prompt) == plain.tokenize(prompt)
        assert torch.equal(prior.encode_text([prompt]).embeds, plain.encode_text([prompt]).embeds)
    # the word takes the file's name; the end token stays where a prompt is cut
    assert prior.tokenize(long + " toy").cut == "toy"
    assert prior.tokenize("a Toy!").ids[2] == len(plain.tokenizers[0])
    assert prior.tokenize("a toyshop") == plain.tokenize("a toyshop")


def test_sdxl_files_teach_both_text_encoders(pipelines, tmp_path):
    pipe = pipelines["sdxl"]
    encoders = [copy.deepcopy(pipe.text_encoder), copy.deepcopy(pipe.text_encoder_2)]
    tokenizers = [WithWords(copy.deepcopy(each)) for each in (pipe.tokenizer, pipe.tokenizer_2)]
    parts = {"clip_l": vectors(3, 16, 1), "clip_g": vectors(3, 24, 2)}
    save_file(parts, tmp_path / "style.safetensors")
    assert add_words(str(tmp_path / "style.safetensors"), tokenizers, encoders) == "style"
    for tokenizer, encoder, part in zip(tokenizers, encoders, parts.values(), strict=True):
        ids = tokenizer("style", padding="max_length", truncation=True, max_length=77)["input_ids"]
        assert torch.equal(encoder.get_input_embeddings().weight[ids[1:4]], part) and len(ids) == 77


def test_words_that_do_not_fit_are_refused(pipelines, tmp_path):
    def teach(name, tensors):
        save_file(tensors, tmp_path / name)
        pipe = pipelines["sd15"]
        tokenizers = [WithWords(copy.deepcopy(pipe.tokenizer))]
        return add_words(str(tmp_path / name), tokenizers, [copy.deepcopy(pipe.text_encoder)])

    for name, tensors in {
        "wide.safetensors": {"<toy>": vectors(1, 24)},
        "xl.safetensors": {"clip_l": vectors(1, 16), "clip_g": vectors(1, 24)},
    }.items():
        with pytest.raises(InputRefused, match="another size"):
            teach(name, tensors)
    tokenizers = [WithWords(copy.deepcopy(pipelines["sd15"].tokenizer))]
    encoders = [copy.deepcopy(pipelines["sd15"].text_encoder)]
    save_file({"<toy>": vectors(1, 16)}, tmp_path / "once.safetensors")
    assert add_words(str(tmp_path / "once.safetensors"), tokenizers, encoders) == "<toy>"
    with pytest.raises(InputRefused, match="already has a word <toy>"):
        add_words(str(tmp_path / "once.safetensors"), tokenizers, encoders)
    with pytest.raises(InputRefused, match="no textual inversion file missing"):
        add_words(str(tmp_path / "missing.safetensors"), [], [])
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(InputRefused, match="damaged or of another kind"):
        add_words(str(tmp_path / "torn.safetensors"), [], [])


# Through the loader


def test_a_lora_given_to_the_loader_is_in_the_prior(sd_folder, pipelines, tmp_path):
    prior = load_prior(str(sd_folder), device="cpu")
    down, up = pair(weight(prior.unet, LAYER))
    save_file({f"unet.{LAYER}.lora_A.weight": down, f"unet.{LAYER}.lora_B.weight": up}, tmp_path / "a.safetensors")
    with_it = load_prior(str(sd_folder), device="cpu", lora=[f"{tmp_path}/a.safetensors:0.5"])
    torch.testing.assert_close(weight(with_it.unet, LAYER), weight(prior.unet, LAYER) + 0.5 * up @ down)
    assert with_it.adapted == ("lora a.safetensors:0.5",) and prior.adapted == ()
    assert model_record("x", with_it)["adapted"] == ["lora a.safetensors:0.5"]
    assert "adapted" not in model_record("x", prior)
    twice = load_prior(str(sd_folder), device="cpu", lora=[f"{tmp_path}/a.safetensors:0.5"] * 2)
    torch.testing.assert_close(weight(twice.unet, LAYER), weight(prior.unet, LAYER) + up @ down)
