"""From "builtin", a folder, or a model id to a Prior.

Components are read one by one with their own `from_pretrained`: a whole diffusers pipeline would import image
processors, and fetch a safety checker and second copies of the weights, that no edit uses. A model that is in the local
cache is used as it is, without asking the network; `hf download ID` brings a newer one.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from sdsedit.errors import InputRefused, printable
from sdsedit.known_models import KNOWN_MODELS, MOVED
from sdsedit.model_options import ModelOptions, file_sha256, is_single_file, parse_lora
from sdsedit.prior import adapters, running
from sdsedit.prior.mmdit import MMDiTPrior
from sdsedit.prior.single import Checkpoint
from sdsedit.prior.unet import UNetPrior

_READ = "Stable Diffusion 1.5, 2.1, 3 and 3.5, SDXL, KOALA and FLUX.1"
_EXAMPLE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_PICKLED = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
_FEW_STEPS = re.compile(r"lightning|turbo|lcm|hyper|schnell", re.IGNORECASE)

# What each part of a pipeline may be: of one with a UNet, of Stable Diffusion 3 and of FLUX.1. The networks come first.
_CLIP, _CLIP_PROJECTED = ("CLIPTextModel",), ("CLIPTextModelWithProjection",)
_CLIP_TOKENS, _T5_TOKENS = ("CLIPTokenizer", "CLIPTokenizerFast"), ("T5TokenizerFast", "T5Tokenizer")
_VAE = ("AutoencoderKL", "AutoencoderTiny")
_UNET_PARTS = {
    "unet": ("UNet2DConditionModel",),
    "vae": _VAE,
    "text_encoder": _CLIP,
    "text_encoder_2": _CLIP_PROJECTED,  # SDXL and KOALA
    "tokenizer": _CLIP_TOKENS,
    "tokenizer_2": _CLIP_TOKENS,
}
_SD3_PARTS = {
    "transformer": ("SD3Transformer2DModel",),
    "vae": _VAE,
    "text_encoder": _CLIP_PROJECTED,
    "text_encoder_2": _CLIP_PROJECTED,
    "text_encoder_3": ("T5EncoderModel",),
    "tokenizer": _CLIP_TOKENS,
    "tokenizer_2": _CLIP_TOKENS,
    "tokenizer_3": _T5_TOKENS,
}
_FLUX_PARTS = {
    "transformer": ("FluxTransformer2DModel",),
    "vae": _VAE,
    "text_encoder": _CLIP,
    "text_encoder_2": ("T5EncoderModel",),
    "tokenizer": _CLIP_TOKENS,
    "tokenizer_2": _T5_TOKENS,
}
_CLASSES = {**_UNET_PARTS, **_SD3_PARTS}  # every part that is ever read
_WEIGHTS = {  # part -> name of its weights without the ending: safetensors, pickled
    **dict.fromkeys(("unet", "transformer", "vae"), ("diffusion_pytorch_model", "diffusion_pytorch_model")),
    **{f"text_encoder{ending}": ("model", "pytorch_model") for ending in ("", "_2", "_3")},
}


class ModelNotFound(RuntimeError):
    """A model is neither here nor to be fetched: one sentence with its id, its licence if known, and how to get it."""


def load_model(options: ModelOptions) -> UNetPrior | MMDiTPrior:
    """`load_prior` for what was asked for in one piece."""
    return load_prior(
        options.name,
        dtype=None if options.precision is None else _DTYPES[options.precision],
        device=options.device,
        attention=options.attention,
        offload=options.offload,
        allow_pickle=options.allow_pickle,
        settings=options.settings,
        lora=options.lora,
        words=options.embedding,
        distilled_guidance=options.distilled_guidance,
        compile=options.compile,
        tiling=options.tiling,
        previews=options.previews,
    )


@torch.inference_mode(False)  # weights that are made under inference mode could never serve autograd
def load_prior(
    spec: str = "builtin",
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    attention: running.AttentionName | None = None,
    offload: bool | Literal["sequential"] = False,
    allow_pickle: bool = False,
    settings: str | None = None,
    lora: Sequence[str] = (),
    words: Sequence[str] = (),
    distilled_guidance: float = 1.0,
    compile: bool = False,
    tiling: bool = False,
    previews: str | None = None,
) -> UNetPrior | MMDiTPrior:
    """A frozen model, ready to edit with.

    spec: "builtin", a diffusers folder, a hub id, "id@revision", or a checkpoint in one .safetensors file.
    dtype: of the network and text encoders; None is float16 on CUDA (the small difference of two predictions needs its
        mantissa more than bfloat16's range), bfloat16 there for SD3 and FLUX.1, whose activations overflow float16, and
        float32 elsewhere. The autoencoder is always read in float32: it runs rarely, and SDXL's overflows.
    device: None is CUDA, then Apple's MPS, then the CPU.
    attention: this network's attention (see running.set_attention); None leaves diffusers' choice, "sdpa" today.
    offload: True keeps one network at a time on the device (see UNetPrior); "sequential" only the layer that runs.
    allow_pickle: also read weights that are only there as .bin; such files can run code when they are opened.
    settings: of a single file, the diffusers folder or id that its settings, its vocabulary and what else it lacks come
        from; None: those of the family's publisher.
    lora: files "PATH" or "PATH:SCALE", added to the weights. words: files of textual inversion.
    distilled_guidance: what FLUX.1 dev is told (see MMDiTPrior); other models take none.
    compile: torch.compile, block by block; the first steps are slow.
    tiling: the autoencoder works in tiles where a picture is larger than the model's own size.
    previews: the folder of a tiny autoencoder (TAESD, TAESDXL, TAESD3, TAEF1), which then draws the previews.

    ModelNotFound: not here and not to be had. InputRefused: here but not to be used, or an option this machine lacks.
    """
    device = _device(device)
    told = dtype
    if dtype is None:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
    if attention is not None:
        running.check_attention(attention, device, dtype)
    checkpoint: Checkpoint | None = None
    if is_single_file(spec):
        checkpoint = Checkpoint(Path(spec).expanduser())
        folder, name = _settings(settings or checkpoint.publisher), checkpoint.name
    elif settings is not None:
        raise InputRefused("Settings are for a single .safetensors file: a folder or an id has its own.")
    else:
        folder, name = _locate(spec, dtype, allow_pickle)
    index = _read_index(folder, name)
    joint = "transformer" in index
    if joint and told is None and device.type == "cuda":
        dtype = torch.bfloat16

    import diffusers
    import transformers

    scheduler = str(index["scheduler"][1])
    if not scheduler.endswith("Scheduler") or not hasattr(diffusers.schedulers, scheduler):
        raise InputRefused(f"{name} names a scheduler that diffusers lacks: {printable(scheduler)}.")

    def network(part: str, library: Any, part_dtype: torch.dtype) -> Any:
        cls = getattr(library, index[part][1])
        if checkpoint is not None and checkpoint.has(part, cls):
            return checkpoint.read(part, cls, folder, part_dtype)
        variant, safetensors, _ = _find_weights(_names(folder), name, part, dtype, allow_pickle)
        options: dict[str, Any] = {"dtype": part_dtype}
        if library is diffusers:  # without accelerate it says at length that it reads weights the plain way
            options = {"torch_dtype": part_dtype, "low_cpu_mem_usage": find_spec("accelerate") is not None}
        with _reading(part, name):
            found, report = cls.from_pretrained(
                folder,
                subfolder=part,
                variant=variant,
                use_safetensors=safetensors,
                output_loading_info=True,
                local_files_only=True,
                **options,
            )
        if report["missing_keys"]:  # which the libraries would fill with random numbers
            missing = len(report["missing_keys"])
            raise InputRefused(f"The {part} of {name} lacks {missing} of its weights; fetch the model again.")
        return found

    def small_files(part: str, cls: Any) -> Any:
        if not _has_settings(_names(folder), part):  # a tokenizer without its files would read every word as unknown
            raise InputRefused(f"The {part} of {name} is missing; fetch the model again.")
        with _reading(part, name):
            return cls.from_pretrained(folder, subfolder=part, local_files_only=True)

    def text(ending: str) -> tuple[Any, Any]:
        """A tokenizer and its text encoder, two times None where the pipeline has none."""
        if "text_encoder" + ending not in index:
            return None, None
        reader = getattr(transformers, index["tokenizer" + ending][1].removesuffix("Fast"))
        tokens = small_files("tokenizer" + ending, reader)
        return tokens, network("text_encoder" + ending, transformers, dtype)

    main = network("transformer" if joint else "unet", diffusers, dtype)
    vae = network("vae", diffusers, torch.float32)
    endings = ("", "_2", "_3") if index["kind"] == "StableDiffusion3Pipeline" else ("", "_2")
    pairs = [text(ending) for ending in endings]
    if not joint:
        pairs = [pair for pair in pairs if pair[0] is not None]
    tokenizers, encoders = [tokens for tokens, _ in pairs], [encoder for _, encoder in pairs]
    noise = small_files("scheduler", getattr(diffusers.schedulers, scheduler))
    if few_steps(name) or few_steps(folder.name) or getattr(main.config, "guidance_embeds", None) is False:
        note = "is distilled to few steps and not calibrated at every time: edits may be weak or noisy."
        warnings.warn(f"{name} {note}", stacklevel=2)
    learned = adapt(main, tokenizers, encoders, lora, words)
    if attention is not None:
        running.set_attention(main, attention)
    if compile:
        running.compile_blocks(main)
    if tiling:
        vae.enable_tiling()
    editing = editing_settings(folder)
    away = bool(offload)
    try:
        if joint:
            prior: UNetPrior | MMDiTPrior = MMDiTPrior(
                name, main, vae, tokenizers, encoders, noise, device, distilled_guidance, away, editing
            )
        else:
            zero_empty = bool(index.get("force_zeros_for_empty_prompt"))
            prior = UNetPrior(name, main, vae, tokenizers, encoders, noise, device, zero_empty, away, editing)
    except ValueError as error:
        raise InputRefused(str(error)) from error
    if device.type == "cuda" and not joint and not offload:
        main.to(memory_format=torch.channels_last)  # as the convolutions of tensor cores read them
    scaled = [parse_lora(given) for given in lora]
    kinds = {each: name for name, each in _DTYPES.items()}
    told_of = {
        "lora": [{**_named(file), "scale": scale} for file, scale in scaled],
        "embedding": [_named(file) for file in words],
        "settings": settings if settings is None or not Path(settings).expanduser().is_dir() else folder.name,
        "precision": None if told is None else kinds.get(told),
        "distilled_guidance": distilled_guidance if joint and distilled_guidance != 1 else None,
        "attention": attention,
        "compile": compile,
        "tiling": tiling,
    }
    prior.options = {name: value for name, value in told_of.items() if value}
    prior.adapted = (
        *(f"lora {printable(Path(file).name)}:{scale:g}" for file, scale in scaled),
        *(f"word {printable(word)}" for word in learned),
        *([f"distilled guidance {distilled_guidance:g}"] if joint and distilled_guidance != 1 else []),
    )
    if offload == "sequential":
        for part in (*prior.text_encoders, main, prior.vae):
            running.offload_layers(part, device)
        prior.offload = offload
    if previews is not None:
        prior.previewer = _previewer(previews, prior)
    return prior


def few_steps(name: str) -> bool:
    """Whether a model's name says that it was distilled to few steps: Lightning, Turbo, LCM, Hyper, schnell."""
    return _FEW_STEPS.search(name) is not None


def adapt(
    main: Any, tokenizers: list[Any], encoders: Sequence[Any], lora: Sequence[str], words: Sequence[str]
) -> list[str]:
    """Add LoRAs and words of textual inversion to a model's parts; the words. Tokenizers that learn are replaced in
    their list."""
    parts = {f"text_encoder{ending}": encoder for ending, encoder in zip(("", "_2", "_3"), encoders, strict=False)}
    parts = {name: part for name, part in parts.items() if part is not None}
    parts["transformer" if hasattr(main, "transformer_blocks") else "unet"] = main
    for given in lora:
        adapters.add_lora(parts, *parse_lora(given))
    learned = []
    if words:
        clips = [i for i, each in enumerate(encoders) if each is not None and "CLIP" in type(each).__name__]
        for i in clips:
            tokenizers[i] = adapters.WithWords(tokenizers[i])
        for file in words:
            learned.append(adapters.add_words(file, [tokenizers[i] for i in clips], [encoders[i] for i in clips]))
    return learned


def _named(file: str) -> dict[str, Any]:
    """A file as a recipe names it."""
    return {"name": Path(file).name, "sha256": file_sha256(Path(file))}


def _previewer(folder: str, prior: UNetPrior | MMDiTPrior) -> Any:
    """A tiny autoencoder of the same latents."""
    from diffusers import AutoencoderTiny

    name = printable(Path(folder).name)
    if not (Path(folder).expanduser() / "config.json").is_file():
        raise InputRefused(f"There is no tiny autoencoder in {name}: give a folder with its config.json.")
    with _reading("tiny autoencoder", name):
        tiny: Any = AutoencoderTiny.from_pretrained(str(Path(folder).expanduser()), local_files_only=True)
    if tiny.config.latent_channels != prior.channels:
        given = tiny.config.latent_channels
        raise InputRefused(f"{name} draws latents of {given} channels, and {prior.name} has {prior.channels}.")
    return tiny.eval().requires_grad_(False).to(prior.device)


def _settings(given: str) -> Path:
    """The folder whose settings a single file takes. ModelNotFound."""
    folder = Path(given).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    model_id, revision = parse_spec(given)
    small = ["model_index.json", "*/*.json", "*/*.txt"]
    try:
        index = hf_hub_download(model_id, "model_index.json", revision=revision, local_files_only=True)
        if all(_has_settings(_names(Path(index).parent), part) for part in _read_index(Path(index).parent, given)
               if part in _CLASSES or part == "scheduler"):  # fmt: skip
            return Path(index).parent
    except LocalEntryNotFoundError:
        pass
    with _asking(model_id, revision):
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=small))


def builtin_path() -> Path:
    """The folder of the built-in model: in the installed package, or at the top of the repository. ModelNotFound."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "assets" / "builtin", package.parent / "assets" / "builtin"):
        if (folder / "model_index.json").is_file():
            return folder
    raise ModelNotFound(
        "The built-in model is not in this copy of sdsedit: reinstall it, or name a folder or a model id."
    )


def parse_spec(spec: str) -> tuple[str, str | None]:
    """ "org/name@revision" -> ("org/name", "revision"); without "@" the revision is None. InputRefused: not an id."""
    model_id, at, revision = spec.partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model_id, re.ASCII) or (
        at and not re.fullmatch(r"[\w./-]+", revision, re.ASCII)
    ):
        raise InputRefused(f"{printable(spec)} is not a model: give builtin, a folder, an id or ID@REVISION.")
    return model_id, revision or None


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputRefused(f"{printable(str(device))} is not a device: give cpu, cuda, cuda:1 or mps.") from error
    if (found.type == "cuda" and not torch.cuda.is_available()) or (
        found.type == "mps" and not torch.backends.mps.is_available()
    ):
        raise InputRefused(f"This machine or this PyTorch has no {found.type}: give cpu, or leave the device out.")
    return found


def _locate(spec: str, dtype: torch.dtype, allow_pickle: bool) -> tuple[Path, str]:
    """The folder that holds a model, and the name that people know it by."""
    if spec == "builtin":
        return builtin_path(), spec
    path = Path(spec).expanduser()
    shown = printable(path.name)
    if path.is_dir():
        return path, shown
    if path.suffix.lower() in _PICKLED:
        raise InputRefused(
            f"{shown} is a pickled checkpoint, which can run code when opened: safetensors only, in a diffusers folder."
        )
    if path.is_file():
        raise InputRefused(f"{shown} is no model: give a diffusers folder, a .safetensors checkpoint or a model id.")
    if spec.startswith((".", "/", "~")) or "\\" in spec or spec.count("/") > 1:
        raise ModelNotFound(
            f"There is no model folder {shown}: give builtin, a diffusers folder, or an id such as {_EXAMPLE}."
        )
    model_id, revision = parse_spec(spec)
    cached = _cached(model_id, revision, dtype, allow_pickle)
    return cached or _download(model_id, revision, dtype, allow_pickle), spec


def _cached(model_id: str, revision: str | None, dtype: torch.dtype, allow_pickle: bool) -> Path | None:
    """The snapshot folder of a model in the hub's cache, or None if the model, or a part of it, is not there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        index = hf_hub_download(model_id, "model_index.json", revision=revision, local_files_only=True)
        folder = Path(index).parent
        names = _names(folder)
        parts = _read_index(folder, model_id).keys() & {*_CLASSES, "scheduler"}
        for part in _WEIGHTS.keys() & parts:
            _find_weights(names, model_id, part, dtype, allow_pickle)
        return folder if all(_has_settings(names, part) for part in parts) else None
    except (LocalEntryNotFoundError, ModelNotFound):
        return None


def editing_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """A model folder's editing.json: method name (or "refine", "sketch") -> the settings that suit this model; {} where
    there is none.

    How far a step should go depends on a model's latents and on how sharply it tells two prompts apart, so a model may
    bring what was found to suit it, as the built-in one does.
    """
    file = folder / "editing.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text("utf-8"))
        assert all(isinstance(settings, dict) for settings in found.values())
    except (ValueError, AttributeError, AssertionError) as error:
        raise InputRefused(
            f"The editing.json of {printable(folder.name)} must be an object of method names and their settings."
        ) from error
    return found


def check_folder(folder: Path) -> None:
    """InputRefused or ModelNotFound where a folder is no model that can be read; its weights are not opened."""
    if not folder.is_dir():
        raise ModelNotFound(f"There is no model folder {printable(folder.name)}.")
    name = printable(folder.name)
    names = _names(folder)
    for part in _read_index(folder, name).keys() & {*_CLASSES, "scheduler"}:
        if part in _WEIGHTS:
            _find_weights(names, name, part, torch.float32, False)
        if not _has_settings(names, part):
            raise InputRefused(f"The {part} of {name} is missing; fetch the model again.")


def _remark(model_id: str) -> str:
    if model_id in MOVED:
        return f" ({MOVED[model_id]})"
    return f" (licence {KNOWN_MODELS[model_id].licence})" if model_id in KNOWN_MODELS else ""


@dataclass(frozen=True)
class Offer:
    """What the hub has of a model, and which files of it a prior reads."""

    model_id: str
    revision: str | None  # as it was asked for
    commit: str
    licence: str | None  # as its page says
    files: dict[str, int]  # name -> bytes; 0: the hub does not say

    @property
    def weights(self) -> list[str]:
        return [name for name in self.files if name.endswith((".safetensors", ".bin"))]


def look_up(
    model_id: str, revision: str | None, dtype: torch.dtype, allow_pickle: bool = False, sizes: bool = False
) -> Offer:
    """Ask the hub for a model, one copy of each weight; nothing is fetched. ModelNotFound, InputRefused."""
    from huggingface_hub import HfApi

    given = f"{model_id}@{revision}" if revision else model_id
    with _asking(model_id, revision) as said:
        info = HfApi().model_info(model_id, revision=revision, timeout=20, files_metadata=sizes)
        licence = getattr(info.card_data, "license", None)
        said.append(licence)
        lengths = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        names = {*lengths}
        if "model_index.json" not in names:
            raise InputRefused(f"{given} is not a diffusers pipeline: {_READ} can be used.")
        wanted = ["model_index.json"]
        for part in (*_CLASSES, "scheduler"):
            files = [name for name in names if re.fullmatch(part + r"/[\w.-]+\.(json|txt)", name)]
            if files and part in _WEIGHTS:
                wanted += [f"{part}/config.json", *_find_weights(names, given, part, dtype, allow_pickle)[2]]
            else:
                wanted += files
        return Offer(model_id, revision, info.sha or "", licence, {name: lengths.get(name, 0) for name in wanted})


def parameters(offer: Offer) -> dict[str, int]:
    """Part -> how many weights it has, read from the heads of its files; only of safetensors. ModelNotFound."""
    from huggingface_hub import HfApi

    found: dict[str, int] = {}
    with _asking(offer.model_id, offer.revision) as said:
        said.append(offer.licence)
        for name in offer.weights:
            if name.endswith(".safetensors"):
                head = HfApi().parse_safetensors_file_metadata(offer.model_id, name, revision=offer.commit)
                part = name.split("/")[0]
                found[part] = found.get(part, 0) + sum(head.parameter_count.values())
    return found


def fetch(offer: Offer) -> Path:
    """What `look_up` found, into the hub's cache: its snapshot folder. ModelNotFound."""
    from huggingface_hub import snapshot_download

    with _asking(offer.model_id, offer.revision) as said:
        said.append(offer.licence)
        return Path(snapshot_download(offer.model_id, revision=offer.revision, allow_patterns=[*offer.files]))


def _download(model_id: str, revision: str | None, dtype: torch.dtype, allow_pickle: bool) -> Path:
    """Fetch what a prior needs of a model into the hub's cache: its snapshot folder."""
    return fetch(look_up(model_id, revision, dtype, allow_pickle))


@contextmanager
def _asking(model_id: str, revision: str | None) -> Iterator[list[str | None]]:
    """Turns what can go wrong with the hub into one sentence; what is given takes the licence, once it is known."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    given = f"{model_id}@{revision}" if revision else model_id
    command = f"hf download {model_id}" + (f" --revision {revision}" if revision else "")
    said: list[str | None] = []

    def named() -> str:
        licence = said[-1] if said else None
        return given + (_remark(model_id) or (f" (licence {licence})" if licence else ""))

    try:
        yield said
    except (InputRefused, ModelNotFound):
        raise
    except GatedRepoError as error:
        raise ModelNotFound(
            f"{named()} is gated: accept its terms on its page, then run `hf auth login` and `{command}`."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelNotFound(f"The hub has no public model {named()}: check the id and the revision.") from error
    except Exception as error:  # the hub client's network errors differ from version to version
        raise ModelNotFound(
            f"{named()} is not on this machine and the hub cannot be reached: run `{command}` when online."
        ) from error


def _read_index(folder: Path, name: str) -> dict[str, Any]:
    """model_index.json, its parts checked: part -> [library, class], and "kind", the pipeline's class. InputRefused:
    another kind of pipeline."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        known = (*_CLASSES, "scheduler")
        parts = {part: entry for part, entry in index.items() if part in known and entry and entry[1]}
        zero_empty = index.get("force_zeros_for_empty_prompt", False)
        kind = str(index.get("_class_name"))
    except (OSError, ValueError, AttributeError, TypeError, IndexError, KeyError) as error:
        raise InputRefused(f"{name} is not a diffusers folder: it has no readable model_index.json.") from error
    allowed = {"StableDiffusion3Pipeline": _SD3_PARTS, "FluxPipeline": _FLUX_PARTS}.get(kind, _UNET_PARTS)
    needed = {"vae", "scheduler", next(iter(allowed))}
    if kind != "StableDiffusion3Pipeline":  # which does with some of its text encoders
        needed |= {"text_encoder", "tokenizer"}
    if kind == "FluxPipeline":
        needed |= {"text_encoder_2", "tokenizer_2"}
    needed |= {part.replace("text_encoder", "tokenizer") for part in parts if part.startswith("text_encoder")}
    for part in (*allowed, "scheduler"):
        if part in needed and part not in parts:
            raise InputRefused(f"{name} is a {printable(kind)} without {part}: {_READ} can be used.")
    for part, classes in allowed.items():
        if part in parts and parts[part][1] not in classes:
            given = printable(str(parts[part][1]))
            raise InputRefused(f"The {part} of {name} is a {given}; it can be a {' or '.join(classes)}.")
    read = {part: entry for part, entry in parts.items() if part in allowed or part == "scheduler"}
    return {**read, "kind": kind, "force_zeros_for_empty_prompt": zero_empty}


def _names(folder: Path) -> set[str]:
    """The files of a model folder as "part/file"."""
    return {path.relative_to(folder).as_posix() for path in folder.glob("*/*")}


def _has_settings(names: Collection[str], part: str) -> bool:
    """Whether a part has its small files: the vocabulary, or the config."""
    if part.startswith("tokenizer"):
        return f"{part}/tokenizer.json" in names or {f"{part}/vocab.json", f"{part}/merges.txt"} <= {*names}
    return f"{part}/{'scheduler_config' if part == 'scheduler' else 'config'}.json" in names


def _find_weights(
    names: Collection[str], model: str, part: str, dtype: torch.dtype, allow_pickle: bool
) -> tuple[str | None, bool, list[str]]:
    """Which weights of a part to read, as (variant, safetensors, files).

    A half-precision copy is taken where it is read in half precision, or where it is the only one.
    """
    safe, pickled = (f"{part}/{stem}" for stem in _WEIGHTS[part])
    half, full = [f"{safe}.fp16.safetensors"], [f"{safe}.safetensors"]

    def shards(stem: str, index: str) -> list[str]:
        return [index, *sorted(n for n in names if re.fullmatch(re.escape(stem) + r"-\d+-of-\d+\.safetensors", n))]

    choices: list[tuple[str | None, list[str]]] = [
        (None, full),
        (None, shards(safe, f"{safe}.safetensors.index.json")),
        ("fp16", half),
        ("fp16", shards(f"{safe}.fp16", f"{safe}.safetensors.index.fp16.json")),
    ]
    if dtype in (torch.float16, torch.bfloat16):
        choices = [*choices[2:], *choices[:2]]
    for variant, files in choices:
        if all(file in names for file in files):
            return variant, True, files
    if f"{pickled}.bin" in names:
        if allow_pickle:
            return None, False, [f"{pickled}.bin"]
        raise InputRefused(
            f"The {part} of {model} is only there as a pickle, which can run code when opened: safetensors only."
        )
    raise ModelNotFound(f"The weights of the {part} of {model} are missing: {part}/{_WEIGHTS[part][0]}.safetensors.")


@contextmanager
def _reading(part: str, name: str) -> Iterator[None]:
    """Turns whatever a library makes of bad files into one sentence, and hides its progress bars."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a bar for each text encoder, even for a model that loads at once
    try:
        yield
    except (
        Exception
    ) as error:  # the libraries raise a dozen kinds for files that are missing, damaged or of another model
        raise InputRefused(
            f"The {part} of {name} cannot be read: its files are missing, damaged or of another kind."
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
