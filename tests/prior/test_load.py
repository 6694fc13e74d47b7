"""prior.load: a model from a folder, the cache or the hub is the one that was saved; all else is one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from sdsedit.edit import StepReport
from sdsedit.errors import InputRefused
from sdsedit.prior import ModelNotFound, builtin_path, load_prior
from sdsedit.prior.load import few_steps, parse_spec
from sdsedit.prior.mmdit import MMDiTPrior
from tests import tiny, tiny_mmdit
from tests.hub import COMMIT, served


def predict(prior, prompts=("a cat", "")):
    z_t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return prior.predict(z_t, torch.tensor([0.3, 0.8]), prior.encode_text(prompts)).eps


def one_sentence(error: pytest.ExceptionInfo[Exception], folder: Path | None = None) -> bool:
    text = str(error.value)
    return "\n" not in text and text.endswith((".", "safetensors.")) and not (folder and str(folder) in text)


@pytest.fixture
def copy_of(tiny_pipeline, tmp_path):
    """copy_of("sd15") is a fresh folder of that model, to be damaged."""
    return lambda family, **saving: tiny.saved(tiny_pipeline(family), tmp_path / "models" / family, **saving)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def remember(cache: Path, model_id: str, folder: Path, ref: str = "main") -> Path:
    """Put a model in the cache as a download would."""
    repo = cache / ("models--" + model_id.replace("/", "--"))
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / ref).write_text(COMMIT)
    return Path(shutil.copytree(folder, repo / "snapshots" / COMMIT))


# What it reads


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_saved_model_loads_as_it_was(family, tiny_prior, copy_of):
    before = tiny_prior(family)
    prior = load_prior(str(copy_of(family)), device="cpu")
    assert prior.name == family and prior.device.type == "cpu" and prior.dtype == torch.float32
    for number in ("channels", "factor", "multiple", "native", "max_tokens"):
        assert getattr(prior, number) == getattr(before, number)
    assert prior.schedule.prediction == before.schedule.prediction
    assert prior.tokenize("a Well-known cat") == before.tokenize("a Well-known cat")
    assert torch.equal(predict(prior), predict(before))


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_model_as_older_libraries_saved_it_loads_the_same(family, tiny_prior, copy_of):
    folder = copy_of(family)
    for encoder, pad in (("text_encoder", tiny.END), ("text_encoder_2", "!")):
        weights = folder / encoder / "model.safetensors"
        if weights.exists():
            tensors = load_file(weights)
            tensors = {name if name.startswith("text_") else "text_model." + name: v for name, v in tensors.items()}
            tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
            save_file(tensors, weights, metadata={"format": "pt"})
            tokens = folder / encoder.replace("text_encoder", "tokenizer")
            shutil.rmtree(tokens)
            tiny.tokenizer(tokens, pad=pad)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        tensors = {name.replace(new, old): v for name, v in tensors.items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    before, prior = tiny_prior(family), load_prior(str(folder), device="cpu")
    assert torch.equal(predict(prior), predict(before))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(prior.encode(image), before.encode(image))


def test_precision_is_the_networks_and_never_the_autoencoders(builtin_folder, sd_folder):
    for folder in (builtin_folder, sd_folder):
        prior = load_prior(str(folder), device="cpu", dtype=torch.bfloat16)
        assert prior.dtype == prior.unet.dtype == prior.text_encoders[0].dtype == torch.bfloat16
        assert prior.vae.dtype == torch.float32


def test_a_folder_of_half_precision_copies_alone_loads(copy_of):
    folder = copy_of("sd15")
    for part in ("unet", "vae", "text_encoder"):
        (weights,) = (folder / part).glob("*.safetensors")
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    assert torch.isfinite(predict(load_prior(str(folder), device="cpu"))).all()


def test_offload_and_attention_change_nothing(sd_folder):
    plain = load_prior(str(sd_folder), device="cpu")
    other = load_prior(str(sd_folder), device="cpu", offload=True, attention="sdpa")
    assert other.offload and torch.equal(predict(plain), predict(other))


def test_loading_inside_inference_mode_serves_autograd(sd_folder):
    with torch.inference_mode():
        prior = load_prior(str(sd_folder), device="cpu")
    z = torch.zeros(1, 4, 16, 16).requires_grad_()
    prior.predict(z, torch.tensor([0.5]), prior.encode_text(["a cat"])).eps.sum().backward()
    assert z.grad is not None


def test_loading_is_quiet(sd_folder, capfd):
    load_prior(str(sd_folder), device="cpu")
    out, err = capfd.readouterr()
    assert not out and not err


def test_loading_needs_neither_pipelines_nor_torchvision(sd_folder):
    script = (
        "import sys; from sdsedit.prior import load_prior; load_prior(sys.argv[1], device='cpu');"
        "unwanted = {'torchvision', 'xformers', 'diffusers.pipelines.pipeline_utils'}; print(unwanted & {*sys.modules})"
    )
    ran = subprocess.run([sys.executable, "-c", script, str(sd_folder)], capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == "set()", ran.stderr


def test_a_step_distilled_model_warns(sd_folder, tmp_path):
    folder = tmp_path / "koala-lightning-1b"
    shutil.copytree(sd_folder, folder)
    with pytest.warns(UserWarning, match="koala-lightning-1b is distilled to few steps"):
        load_prior(str(folder), device="cpu")


# Transformers with joint attention


@pytest.fixture(scope="module")
def joint_folders(tmp_path_factory):
    """A folder of each of tests/tiny_mmdit.py's models, and the prior of what was saved."""
    top = tmp_path_factory.mktemp("joint")
    pipes = {name: build(top / "tokens" / name) for name, build in tiny_mmdit.FAMILIES.items()}
    return {name: (tiny.saved(pipe, top / name), MMDiTPrior.from_pipeline(pipe)) for name, pipe in pipes.items()}


def predict_joint(prior):
    z_t = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return prior.predict(z_t, torch.tensor([0.3, 0.8]), prior.encode_text(["a cat", ""])).eps


@pytest.mark.filterwarnings("ignore:flux_schnell is distilled")
@pytest.mark.parametrize("family", tiny_mmdit.FAMILIES)
def test_a_joint_transformer_loads_as_it_was(family, joint_folders):
    folder, before = joint_folders[family]
    prior = load_prior(str(folder), device="cpu")
    assert isinstance(prior, MMDiTPrior) and prior.name == family and prior.dtype == torch.float32
    for number in ("channels", "factor", "multiple", "native", "max_tokens", "schedule"):
        assert getattr(prior, number) == getattr(before, number)
    assert prior.tokenize("a Well-known cat") == before.tokenize("a Well-known cat")
    assert torch.equal(predict_joint(prior), predict_joint(before))


def test_sd3_loads_without_its_largest_text_encoder(joint_folders, tmp_path):
    folder = tmp_path / "sd3"
    shutil.copytree(joint_folders["sd3"][0], folder)
    shutil.rmtree(folder / "text_encoder_3")
    shutil.rmtree(folder / "tokenizer_3")
    with pytest.raises(InputRefused, match="tokenizer_3 of sd3 is missing"):
        load_prior(str(folder), device="cpu")
    change_index(folder, text_encoder_3=[None, None], tokenizer_3=[None, None])
    prior = load_prior(str(folder), device="cpu")
    assert len(prior.text_encoders) == 2 and not prior.encode_text(["a cat"]).embeds[:, 77:].any()


def test_weights_in_several_files_load_the_same(joint_folders, tmp_path):
    folder = tmp_path / "sd3"
    shutil.copytree(joint_folders["sd3"][0], folder)
    before = joint_folders["sd3"][1]
    for part, stem in (("transformer", "diffusion_pytorch_model"), ("text_encoder_3", "model")):
        (folder / part / f"{stem}.safetensors").unlink()
    before.transformer.save_pretrained(folder / "transformer", max_shard_size="40KB")
    before.text_encoders[2].save_pretrained(folder / "text_encoder_3", max_shard_size="10KB", variant="fp16")
    assert list(folder.glob("transformer/*-00002-of-*")) and list(folder.glob("text_encoder_3/*fp16*-of-*"))
    assert torch.equal(predict_joint(load_prior(str(folder), device="cpu")), predict_joint(before))


def test_the_distilled_guidance_is_a_setting_of_its_own(joint_folders):
    prior = load_prior(str(joint_folders["flux_dev"][0]), device="cpu", distilled_guidance=3.5)
    assert isinstance(prior, MMDiTPrior) and prior.encode_text(["a cat"]).guidance.tolist() == [3.5]


def test_schnell_warns_whatever_its_folder_is_called(joint_folders, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(joint_folders["flux_schnell"][0], folder)
    with pytest.warns(UserWarning, match="mine is distilled to few steps"):
        load_prior(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("name", "few"),
    [
        ("stabilityai/sdxl-turbo", True),
        ("stabilityai/sd-turbo", True),
        ("ByteDance/SDXL-Lightning", True),
        ("etri-vilab/koala-lightning-700m", True),
        ("black-forest-labs/FLUX.1-schnell", True),
        ("stabilityai/stable-diffusion-3.5-large-turbo", True),
        ("SimianLuo/LCM_Dreamshaper_v7", True),
        ("ByteDance/Hyper-SD", True),
        ("black-forest-labs/FLUX.1-dev", False),
        ("stabilityai/stable-diffusion-xl-base-1.0", False),
        ("etri-vilab/koala-700m-llava-cap", False),
    ],
)
def test_names_that_tell_of_few_steps(name, few):
    assert few_steps(name) == few


@pytest.mark.parametrize(
    ("family", "entries", "says"),
    [
        ("flux_dev", {"text_encoder_2": [None, None]}, "FluxPipeline without text_encoder_2"),
        ("flux_dev", {"tokenizer": [None, None]}, "FluxPipeline without tokenizer"),
        ("flux_dev", {"transformer": ["diffusers", "SD3Transformer2DModel"]}, "it can be a FluxTransformer2DModel"),
        ("sd3", {"transformer": [None, None]}, "StableDiffusion3Pipeline without transformer"),
        ("sd3", {"tokenizer_3": [None, None]}, "without tokenizer_3"),
        (
            "sd3",
            {f"{kind}{n}": [None, None] for kind in ("tokenizer", "text_encoder") for n in ("", "_2", "_3")},
            "at least one of its three text encoders",
        ),
        ("sd3", {"scheduler": ["diffusers", "DDIMScheduler"]}, "flow-matching scheduler"),
    ],
)
def test_other_joint_pipelines_are_refused(family, entries, says, joint_folders, tmp_path):
    folder = tmp_path / "models" / family
    shutil.copytree(joint_folders[family][0], folder)
    with pytest.raises(InputRefused, match=says) as error:
        load_prior(change_index(folder, **entries), device="cpu")
    assert one_sentence(error, folder)


# How it runs


@pytest.mark.parametrize(
    "options",
    [{"offload": "sequential"}, {"tiling": True}, {"attention": "math"}, {"attention": "flash"}, {"attention": "sdpa"}],
)
@pytest.mark.parametrize("kind", ["unet", "joint"])
def test_how_a_model_runs_changes_nothing(kind, options, sd_folder, joint_folders):
    folder = sd_folder if kind == "unet" else joint_folders["flux_dev"][0]
    say = predict if kind == "unet" else predict_joint
    plain, other = load_prior(str(folder), device="cpu"), load_prior(str(folder), device="cpu", **options)
    torch.testing.assert_close(say(other), say(plain), atol=1e-5, rtol=1e-5)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(other.decode(other.encode(image)), plain.decode(plain.encode(image)))
    assert bool(other.vae.use_tiling) == ("tiling" in options)


def test_a_tiny_autoencoder_draws_previews_and_nothing_else(sd_folder, tmp_path):
    torch.manual_seed(0)
    tiny_vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    tiny_vae.save_pretrained(tmp_path / "taesd")
    prior = load_prior(str(sd_folder), device="cpu", previews=str(tmp_path / "taesd"))
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        report = StepReport(0, 1, {}, z, None, prior)
        expected = (tiny_vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(report.preview(), expected)
        assert torch.equal(prior.decode(z), load_prior(str(sd_folder), device="cpu").decode(z))
        assert not torch.equal(report.preview(), prior.decode(z))
        prior.previewer = None
        assert torch.equal(report.preview(), prior.decode(z))


def test_previews_of_other_latents_are_refused(sd_folder, tmp_path):
    with pytest.raises(InputRefused, match="no tiny autoencoder in missing"):
        load_prior(str(sd_folder), device="cpu", previews=str(tmp_path / "missing"))
    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    AutoencoderTiny(latent_channels=16, **blocks).save_pretrained(tmp_path / "taef1")
    with pytest.raises(InputRefused, match="taef1 draws latents of 16 channels, and tiny-sd15 has 4"):
        load_prior(str(sd_folder), device="cpu", previews=str(tmp_path / "taef1"))


# Names


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("org/name", ("org/name", None)),
        ("org/name@fp16", ("org/name", "fp16")),
        ("name@" + COMMIT, ("name", COMMIT)),
        ("org/a.b-c_d@refs/pr/3", ("org/a.b-c_d", "refs/pr/3")),
    ],
)
def test_ids_may_carry_a_revision(spec, parsed):
    assert parse_spec(spec) == parsed


@pytest.mark.parametrize(
    "spec", ["", "org/name@", "a b", "org/name@x y", "https://example.org/m", "@main", "a/b/c", "né"]
)
def test_other_names_are_refused(spec):
    with pytest.raises(InputRefused) as error:
        parse_spec(spec)
    assert one_sentence(error)


def test_a_model_in_the_cache_is_used_without_asking(cache, sd_folder, sd15_prior):
    remember(cache, "org/tiny", sd_folder)
    prior = load_prior("org/tiny", device="cpu")
    assert prior.name == "org/tiny" and torch.equal(predict(prior), predict(sd15_prior))
    assert torch.equal(predict(load_prior(f"org/tiny@{COMMIT}", device="cpu")), predict(sd15_prior))
    with pytest.raises(ModelNotFound, match="org/tiny@v2"):
        load_prior("org/tiny@v2", device="cpu")


def test_a_named_revision_is_found_in_the_cache(cache, sd_folder):
    remember(cache, "org/tiny", sd_folder, ref="v2")
    assert load_prior("org/tiny@v2", device="cpu").name == "org/tiny@v2"
    with pytest.raises(ModelNotFound, match="org/tiny is not"):
        load_prior("org/tiny", device="cpu")


# What is missing


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nobody/nothing", "run `hf download nobody/nothing`"),
        ("nobody/nothing@v1", "run `hf download nobody/nothing --revision v1`"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "licence CreativeML Open RAIL"),
        ("runwayml/stable-diffusion-v1-5", "mirror is stable-diffusion-v1-5/stable-diffusion-v1-5"),
    ],
)
def test_a_missing_model_offline_says_how_to_get_it(cache, spec, says):
    with pytest.raises(ModelNotFound) as error:
        load_prior(spec, device="cpu")
    assert one_sentence(error) and spec in str(error.value) and says in str(error.value)


@pytest.mark.parametrize("part", ["unet", "tokenizer", "scheduler"])
def test_a_half_fetched_model_is_missing(cache, sd_folder, part):
    snapshot = remember(cache, "org/tiny", sd_folder)
    for file in (snapshot / part).iterdir():
        if file.name != "config.json":
            file.unlink()
    with pytest.raises(ModelNotFound, match="hf download org/tiny"):
        load_prior("org/tiny", device="cpu")


@pytest.mark.parametrize("spec", ["./no/such", "/no/such/folder", "~/no-such-folder", "a/b/c", "no\\such"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(spec):
    with pytest.raises(ModelNotFound, match="no model folder") as error:
        load_prior(spec, device="cpu")
    assert one_sentence(error) and "/no/such" not in str(error.value)


def test_the_builtin_model_is_found_or_missed_in_one_sentence():
    try:
        assert (builtin_path() / "model_index.json").is_file()
    except ModelNotFound as error:
        assert str(error).count("\n") == 0 and "built-in model" in str(error)


# What it refuses


def test_pickled_weights_are_refused_unless_asked_for(copy_of, tiny_prior):
    folder = copy_of("sd15", safe=False)
    if not list(folder.glob("text_encoder/*.bin")):  # transformers writes no pickles any more
        torch.save(tiny_prior("sd15").text_encoders[0].state_dict(), folder / "text_encoder" / "pytorch_model.bin")
        (folder / "text_encoder" / "model.safetensors").unlink()
    assert not list(folder.rglob("*.safetensors"))
    with pytest.raises(InputRefused, match="safetensors only") as error:
        load_prior(str(folder), device="cpu")
    assert one_sentence(error, folder)
    prior = load_prior(str(folder), device="cpu", allow_pickle=True)
    assert torch.equal(predict(prior), predict(tiny_prior("sd15")))


def test_one_pickled_part_is_enough_to_refuse(copy_of):
    folder = copy_of("builtin_like")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputRefused, match="The vae of builtin_like is only there as a pickle"):
        load_prior(str(folder), device="cpu")


def test_a_pickle_is_never_opened_by_default(copy_of, tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    folder = copy_of("sd15")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"conv_in.weight": Bomb()}, folder / "unet" / "diffusion_pytorch_model.bin")
    for allow in (False, True):  # even when allowed, torch opens weights only
        with pytest.raises(InputRefused):
            load_prior(str(folder), device="cpu", allow_pickle=allow)
        assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.PT", "missing.pth"])
@pytest.mark.parametrize("allow", [False, True])
def test_single_pickled_files_are_refused(tmp_path, name, allow):
    if "missing" not in name:
        (tmp_path / name).write_bytes(b"\x80\x04N.")
    with pytest.raises(InputRefused, match="safetensors only") as error:
        load_prior(str(tmp_path / name), device="cpu", allow_pickle=allow)
    assert one_sentence(error, tmp_path) and name in str(error.value)


def test_files_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(InputRefused, match=r"model\.onnx is no model"):
        load_prior(str(tmp_path / "model.onnx"), device="cpu")


def change_index(folder: Path, **entries: object) -> str:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **entries}))
    return str(folder)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"_class_name": "FluxPipeline", "unet": [None, None]}, "FluxPipeline without transformer"),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "text_encoder of sd15 is a T5EncoderModel"),
        ({"vae": ["diffusers", "DiffusionPipeline"]}, "vae of sd15 is a DiffusionPipeline"),
        ({"scheduler": ["diffusers", "NoScheduler"]}, "a scheduler that diffusers lacks: NoScheduler"),
        ({"scheduler": ["diffusers", "__loader__"]}, "scheduler"),
        ({"unet": "UNet2DConditionModel"}, "unet"),
        ({"scheduler": 7}, "model_index"),
    ],
)
def test_other_pipelines_are_refused(copy_of, entries, says):
    folder = copy_of("sd15")
    with pytest.raises(InputRefused, match=says) as error:
        load_prior(change_index(folder, **entries), device="cpu")
    assert one_sentence(error, folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00", '{"unet": {}}'])
def test_an_unreadable_index_is_refused(tmp_path, text):
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(InputRefused) as error:
        load_prior(str(tmp_path), device="cpu")
    assert one_sentence(error, tmp_path)


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(InputRefused, match=r"no readable model_index\.json"):
        load_prior(str(tmp_path), device="cpu")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_damaged_weights_are_refused(copy_of, part):
    folder = copy_of("sd15")
    (weights,) = (folder / part).glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputRefused, match=f"The {part} of sd15 cannot be read") as error:
        load_prior(str(folder), device="cpu")
    assert one_sentence(error, folder)


@pytest.mark.parametrize("file", ["scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "unet/config.json",
                                  "text_encoder/config.json"])  # fmt: skip
@pytest.mark.parametrize("content", [None, "{", "[]", '{"num_train_timesteps": "many", "block_out_channels": 3}'])
def test_damaged_settings_are_refused(copy_of, file, content):
    folder = copy_of("sd15")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(InputRefused) as error:
        load_prior(str(folder), device="cpu")
    assert one_sentence(error, folder)


def test_an_inpainting_model_is_refused(tmp_path):
    pipe = tiny.sd15(tmp_path / "tokens")
    config = {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}
    pipe.register_modules(unet=type(pipe.unet)(**{**config, "in_channels": 9}))
    with pytest.raises(InputRefused, match="inpainting") as error:
        load_prior(str(tiny.saved(pipe, tmp_path / "inpaint")), device="cpu")
    assert one_sentence(error, tmp_path)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_missing_weights_are_never_random(copy_of, part):
    folder = copy_of("sd15")
    (weights,) = (folder / part).glob("*.safetensors")
    tensors = load_file(weights)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputRefused, match="lacks 1 of its weights"):
        load_prior(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "toaster"}, "toaster is not a device"),
        ({"attention": "sage"}, "math, xformers; got sage"),
        ({"device": "cpu", "attention": "cudnn"}, "cudnn attention does not run on cpu in float32"),
        ({"settings": "org/name"}, "for a single .safetensors file"),
        ({"device": "cpu", "attention": "xformers"}, "xformers attention needs"),
        pytest.param(
            {"device": "cuda"},
            "has no cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="only says so without a GPU"),
        ),
    ],
)
def test_options_that_this_machine_lacks_are_refused(sd_folder, options, says):
    with pytest.raises(InputRefused, match=says) as error:
        load_prior(str(sd_folder), **options)
    assert one_sentence(error)


# The hub, as a small server that speaks its protocol


@pytest.fixture
def hub(monkeypatch, sd_folder, cache, tmp_path):
    """A hub on this machine with one model, org/tiny, and the list of the files that were fetched from it."""
    shelf = tmp_path / "shelf"
    shutil.copytree(sd_folder, shelf)
    for extra in ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "README.md",
                  "safety_checker/model.safetensors", "v1-5-pruned.ckpt", "vae_decoder/model.onnx"):  # fmt: skip
        (shelf / extra).parent.mkdir(exist_ok=True)
        shutil.copy(shelf / "unet" / "diffusion_pytorch_model.safetensors", shelf / extra)
    with served(shelf, monkeypatch) as hub:
        yield hub


def test_a_model_of_the_hub_is_fetched_once_and_only_what_is_read(hub, sd15_prior):
    fetched = hub.fetched
    prior = load_prior("org/tiny", device="cpu")
    assert torch.equal(predict(prior), predict(sd15_prior))
    assert sorted(file for file in fetched if not file.endswith((".json", ".txt"))) == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    fetched.clear()
    load_prior("org/tiny", device="cpu")
    assert not fetched


def test_the_hub_says_what_it_lacks(hub):
    with pytest.raises(ModelNotFound, match="no public model org/other") as error:
        load_prior("org/other", device="cpu")
    assert one_sentence(error)


def test_a_gated_model_says_its_licence_and_what_to_do(hub):
    hub.gated = True
    with pytest.raises(ModelNotFound, match=r"org/tiny \(licence mit\) is gated: accept") as error:
        load_prior("org/tiny", device="cpu")
    assert one_sentence(error) and "hf auth login" in str(error.value)
