"""prior.load: a model from a folder, the cache or the hub is the one that was saved; all else is one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdsedit.errors import InputRefused
from sdsedit.prior import ModelNotFound, builtin_path, load_prior
from sdsedit.prior.load import parse_spec
from tests import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


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


def test_single_files_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputRefused, match=r"model\.safetensors is a single file"):
        load_prior(str(tmp_path / "model.safetensors"), device="cpu")


def change_index(folder: Path, **entries: object) -> str:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **entries}))
    return str(folder)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"_class_name": "FluxPipeline", "unet": [None, None]}, "FluxPipeline without unet"),
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
        ({"attention": "flash"}, "sdpa or xformers; got flash"),
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
    fetched: list[str] = []
    gated = {"gated": False}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = self.path.split("?")[0]
            kind, content, status = "application/json", b"{}", 200
            headers = {"X-Repo-Commit": COMMIT, "ETag": '"' + path.replace("/", "-") + '"'}
            files = [file.relative_to(shelf).as_posix() for file in shelf.rglob("*") if file.is_file()]
            if path.startswith("/api/models/org/tiny/tree/"):
                sizes = [(shelf / file).stat().st_size for file in files]
                rows = [
                    {"type": "file", "path": f, "size": s, "oid": "0" * 40} for f, s in zip(files, sizes, strict=True)
                ]
                content = json.dumps(rows).encode()
            elif path.startswith("/api/models/org/tiny"):
                info = {"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
                content = json.dumps({**info, "cardData": {"license": "mit"}, "tags": []}).encode()
            elif path.startswith("/org/tiny/resolve/") and gated["gated"]:
                status, headers = 403, {**headers, "X-Error-Code": "GatedRepo"}
            elif path.startswith("/org/tiny/resolve/"):
                file = path.split("/", 5)[5]
                kind, content = "application/octet-stream", (shelf / file).read_bytes()
                if body:
                    fetched.append(file)
            else:
                status, headers = 404, {"X-Error-Code": "RepoNotFound"}
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield fetched, gated
    server.shutdown()
    server.server_close()


def test_a_model_of_the_hub_is_fetched_once_and_only_what_is_read(hub, sd15_prior):
    fetched, _ = hub
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
    hub[1]["gated"] = True
    with pytest.raises(ModelNotFound, match=r"org/tiny \(licence mit\) is gated: accept") as error:
        load_prior("org/tiny", device="cpu")
    assert one_sentence(error) and "hf auth login" in str(error.value)
