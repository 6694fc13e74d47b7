"""From "builtin", a folder, or a model id to a Prior.

Components are read one by one with their own `from_pretrained`: a whole diffusers pipeline would import image
processors, and fetch a safety checker and second copies of the weights, that no edit uses. A model that is in the local
cache is used as it is, without asking the network; `hf download ID` brings a newer one.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from sdsedit.errors import InputRefused, printable
from sdsedit.known_models import KNOWN_MODELS, MOVED
from sdsedit.prior.unet import UNetPrior

_READ = "Stable Diffusion 1.5 and 2.1, SDXL and KOALA"
_EXAMPLE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_PICKLED = (".ckpt", ".bin", ".pt", ".pth", ".pkl")

# What each part of a pipeline may be; the text encoder and tokenizer numbered 2 are SDXL's.
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
_WEIGHTS = {  # part -> name of its weights without the ending: safetensors, pickled
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "text_encoder": ("model", "pytorch_model"),
    "text_encoder_2": ("model", "pytorch_model"),
}


class ModelNotFound(RuntimeError):
    """A model is neither here nor to be fetched: one sentence with its id, its licence if known, and how to get it."""


@torch.inference_mode(False)  # weights that are made under inference mode could never serve autograd
def load_prior(
    spec: str = "builtin",
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    attention: Literal["sdpa", "xformers"] | None = None,
    offload: bool = False,
    allow_pickle: bool = False,
) -> UNetPrior:
    """A frozen model, ready to edit with.

    spec: "builtin", a diffusers folder, a hub id, or "id@revision".
    dtype: of the UNet and text encoders; None is float16 on CUDA (the small difference of two predictions needs its
        mantissa more than bfloat16's range) and float32 elsewhere. The autoencoder is always read in float32: it runs
        rarely, and SDXL's overflows.
    device: None is CUDA, then Apple's MPS, then the CPU.
    attention: the UNet's attention; None leaves diffusers' choice, which is "sdpa" today.
    offload: keep one network at a time on the device (see UNetPrior).
    allow_pickle: also read weights that are only there as .bin; such files can run code when they are opened.

    ModelNotFound: not here and not to be had. InputRefused: here but not to be used, or an option this machine lacks.
    """
    if attention not in (None, "sdpa", "xformers"):
        raise InputRefused(f"Attention can be sdpa or xformers; got {printable(str(attention))}.")
    device = _device(device)
    if dtype is None:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
    folder, name = _locate(spec, dtype, allow_pickle)
    index = _read_index(folder, name)
    if re.search(r"lightning|turbo|lcm|hyper", name, re.IGNORECASE):
        note = "is distilled to few steps and not calibrated at every time: edits may be weak or noisy."
        warnings.warn(f"{name} {note}", stacklevel=2)

    import diffusers
    import transformers

    scheduler = str(index["scheduler"][1])
    if not scheduler.endswith("Scheduler") or not hasattr(diffusers.schedulers, scheduler):
        raise InputRefused(f"{name} names a scheduler that diffusers lacks: {printable(scheduler)}.")
    texts = [ending for ending in ("", "_2") if "text_encoder" + ending in index]

    def network(part: str, library: Any, part_dtype: torch.dtype) -> Any:
        variant, safetensors, _ = _find_weights(_names(folder), name, part, dtype, allow_pickle)
        options: dict[str, Any] = {"dtype": part_dtype}
        if library is diffusers:  # without accelerate it says at length that it reads weights the plain way
            options = {"torch_dtype": part_dtype, "low_cpu_mem_usage": find_spec("accelerate") is not None}
        with _reading(part, name):
            found, report = getattr(library, index[part][1]).from_pretrained(
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

    def settings(part: str, cls: Any) -> Any:
        if not _has_settings(_names(folder), part):  # a tokenizer without its files would read every word as unknown
            raise InputRefused(f"The {part} of {name} is missing; fetch the model again.")
        with _reading(part, name):
            return cls.from_pretrained(folder, subfolder=part, local_files_only=True)

    unet = network("unet", diffusers, dtype)
    vae = network("vae", diffusers, torch.float32)
    tokenizers = [settings("tokenizer" + ending, transformers.CLIPTokenizer) for ending in texts]
    encoders = [network("text_encoder" + ending, transformers, dtype) for ending in texts]
    noise = settings("scheduler", getattr(diffusers.schedulers, scheduler))
    zero_empty = bool(index.get("force_zeros_for_empty_prompt"))
    editing = editing_settings(folder)
    try:
        prior = UNetPrior(name, unet, vae, tokenizers, encoders, noise, device, zero_empty, offload, editing)
    except ValueError as error:
        raise InputRefused(str(error)) from error
    if attention == "sdpa":
        from diffusers.models.attention_processor import AttnProcessor2_0

        prior.unet.set_attn_processor(AttnProcessor2_0())
    elif attention == "xformers":
        try:
            prior.unet.enable_xformers_memory_efficient_attention()
        except (ImportError, ValueError, NotImplementedError, RuntimeError) as error:
            raise InputRefused(
                "xformers attention needs a CUDA GPU and `pip install xformers`; sdpa does not."
            ) from error
    return prior


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
    if path.is_file() or path.suffix.lower() == ".safetensors":
        raise InputRefused(f"{shown} is a single file: give a diffusers folder (with model_index.json) or a model id.")
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


def _remark(model_id: str) -> str:
    if model_id in MOVED:
        return f" ({MOVED[model_id]})"
    return f" (licence {KNOWN_MODELS[model_id].licence})" if model_id in KNOWN_MODELS else ""


def _download(model_id: str, revision: str | None, dtype: torch.dtype, allow_pickle: bool) -> Path:
    """Fetch what a prior needs of a model into the hub's cache, one copy of each weight: its snapshot folder."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    given = f"{model_id}@{revision}" if revision else model_id
    command = f"hf download {model_id}" + (f" --revision {revision}" if revision else "")
    remark = _remark(model_id)
    try:
        info = HfApi().model_info(model_id, revision=revision, timeout=20)
        licence = getattr(info.card_data, "license", None)
        remark = remark or (f" (licence {licence})" if licence else "")
        names = {file.rfilename for file in info.siblings or ()}
        if "model_index.json" not in names:
            raise InputRefused(f"{given} is not a diffusers pipeline: {_READ} can be used.")
        wanted = ["model_index.json"]
        for part in (*_CLASSES, "scheduler"):
            files = [name for name in names if re.fullmatch(part + r"/[\w.-]+\.(json|txt)", name)]
            if files and part in _WEIGHTS:
                wanted += [f"{part}/config.json", *_find_weights(names, given, part, dtype, allow_pickle)[2]]
            else:
                wanted += files
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=wanted))
    except (InputRefused, ModelNotFound):
        raise
    except GatedRepoError as error:
        raise ModelNotFound(
            f"{given}{remark} is gated: accept its terms on its page, then run `hf auth login` and `{command}`."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelNotFound(f"The hub has no public model {given}{remark}: check the id and the revision.") from error
    except Exception as error:  # the hub client's network errors differ from version to version
        raise ModelNotFound(
            f"{given}{remark} is not on this machine and the hub cannot be reached: run `{command}` when online."
        ) from error


def _read_index(folder: Path, name: str) -> dict[str, Any]:
    """model_index.json, its parts checked: part -> [library, class]. InputRefused: another kind of pipeline."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        known = (*_CLASSES, "scheduler")
        parts = {part: entry for part, entry in index.items() if part in known and entry and entry[1]}
        zero_empty = index.get("force_zeros_for_empty_prompt", False)
        kind = str(index.get("_class_name"))
    except (OSError, ValueError, AttributeError, TypeError, IndexError, KeyError) as error:
        raise InputRefused(f"{name} is not a diffusers folder: it has no readable model_index.json.") from error
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        if part not in parts:
            raise InputRefused(f"{name} is a {printable(kind)} without {part}: {_READ} can be used.")
    for part, classes in _CLASSES.items():
        if part in parts and parts[part][1] not in classes:
            given = printable(str(parts[part][1]))
            raise InputRefused(f"The {part} of {name} is a {given}; it can be a {' or '.join(classes)}.")
    return {**parts, "force_zeros_for_empty_prompt": zero_empty}


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
    shards = sorted(name for name in names if re.fullmatch(re.escape(safe) + r"-\d+-of-\d+\.safetensors", name))
    index = f"{safe}.safetensors.index.json"
    choices: list[tuple[str | None, list[str]]] = [(None, full), (None, [index, *shards]), ("fp16", half)]
    if dtype in (torch.float16, torch.bfloat16):
        choices = [choices[-1], *choices[:-1]]
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
