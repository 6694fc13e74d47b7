"""What people train beside a model: LoRA weights, and words of textual inversion.

A LoRA, W + scale (alpha / r) B A (arXiv:2106.09685), is added to the weights once, when the model is loaded: no second
multiplication in every layer, and nothing that an attention probe, a compiler or offloading would have to know. Names
of layers are diffusers' own work: its loaders read kohya's, Black Forest Labs' and diffusers' files alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdsedit.errors import InputRefused, printable
from sdsedit.model_options import parse_lora as parse_lora  # how a LoRA is written

_DOWN = re.compile(r"\.(lora_A|lora\.down|lora_down|lora_linear_layer\.down)(\.\w+)?\.weight$")


@torch.no_grad()
def add_lora(
    networks: Mapping[str, nn.Module],  # "unet" or "transformer", "text_encoder", "text_encoder_2" -> module
    file: str,
    scale: float = 1.0,
) -> int:
    """Add a LoRA file to the weights of a model: how many layers it changed. InputRefused: no LoRA of this model."""
    name = printable(Path(file).name)
    if Path(file).suffix.lower() != ".safetensors" or not Path(file).is_file():
        raise InputRefused(f"There is no LoRA file {name}: give a .safetensors file.")
    main = "unet" if "unet" in networks else "transformer"
    try:
        weights, alphas = _read_lora(networks[main], file)
    except InputRefused:
        raise
    except Exception as error:  # whatever diffusers' converters make of a file of another kind
        raise InputRefused(f"{name} cannot be read as a LoRA of this model.") from error
    if any("dora" in key or "magnitude" in key for key in weights):
        raise InputRefused(f"{name} is a DoRA, which cannot be used; a plain LoRA can.")
    changed, unknown = 0, 0
    for key, down in weights.items():
        found = _DOWN.search(key)
        if not found:
            continue
        other_half = found.group().replace("lora_A", "lora_B").replace("down", "up")
        up = weights.get(key[: found.start()] + other_half)
        prefix, _, path = key[: found.start()].partition(".")
        layer = _layer(networks.get(prefix), path)
        if up is None or layer is None or not _fits(layer, down, up):
            unknown += 1
            continue
        _add(layer, down, up, scale * alphas.get(key[: found.start()], down.shape[0]) / down.shape[0])
        changed += 1
    if unknown or not changed:
        raise InputRefused(f"{name} is no LoRA of this model: {unknown} of its {unknown + changed} layers do not fit.")
    return changed


def check_lora(file: str) -> None:
    """InputRefused: no LoRA at all, as far as the names in the file tell; its model is not asked."""
    name = printable(Path(file).name)
    keys = _names(file, "LoRA")
    if any("dora" in key or "magnitude" in key for key in keys):
        raise InputRefused(f"{name} is a DoRA, which cannot be used; a plain LoRA can.")
    if not any(_DOWN.search(key) for key in keys):
        raise InputRefused(f"{name} is no LoRA: none of its {len(keys)} tensors is half of one.")


def check_words(file: str) -> None:
    """InputRefused: no textual inversion, as far as the file's head tells; its model is not asked."""
    name = printable(Path(file).name)
    count = len(_names(file, "textual inversion"))
    if not 1 <= count <= 3:
        raise InputRefused(f"{name} is no textual inversion: it has {count} tensors, and a word one a text encoder.")


def _names(file: str, kind: str) -> list[str]:
    """Of a file's tensors; the tensors are not read."""
    from safetensors import safe_open

    name = printable(Path(file).name)
    if Path(file).suffix.lower() != ".safetensors" or not Path(file).is_file():
        raise InputRefused(f"There is no {kind} file {name}: give a .safetensors file.")
    try:
        with safe_open(file, "pt") as opened:
            return [*opened.keys()]
    except Exception as error:  # a file that is not safetensors raises the reader's own kinds
        raise InputRefused(f"{name} cannot be read: it is damaged or of another kind.") from error


def _read_lora(network: nn.Module, file: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """(weights by diffusers' names, "network.path.to.layer" -> alpha)."""
    from diffusers.loaders import lora_pipeline

    kind = type(network).__name__
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "return_lora_metadata": True}
    if kind == "UNet2DConditionModel":
        loader: Any = lora_pipeline.StableDiffusionXLLoraLoaderMixin
        options["unet_config"] = network.config
    elif kind == "SD3Transformer2DModel":
        loader = lora_pipeline.SD3LoraLoaderMixin
    else:
        loader = lora_pipeline.FluxLoraLoaderMixin
        options["return_alphas"] = True
    read = loader.lora_state_dict(file, **options)
    weights, metadata = read[0], read[-1]
    alphas = {} if len(read) == 2 else dict(read[1] or {})
    weights = _named_alike(dict(weights))
    named = _named_alike({key.removesuffix(".alpha"): value for key, value in alphas.items()})
    told = {_DOWN.sub("", key): float(value) for key, value in named.items()}
    for key in list(weights):
        if key.endswith(".alpha"):
            told[key.removesuffix(".alpha")] = float(weights.pop(key))
    for key in weights:
        prefix, path = key.split(".", 1)[0], _DOWN.sub("", key)
        alpha = (metadata or {}).get(f"{prefix}.lora_alpha")
        if alpha is not None:
            told.setdefault(path, float(alpha))
    return weights, told


def _named_alike(by_key: dict[str, Any]) -> dict[str, Any]:
    """The same values by the names of the layers as they are today: "...attn1.to_q.lora_A.weight"."""
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    def named(key: str) -> str:
        return re.sub(r"\.self_attn\.to_(q|k|v|out)\.", r".self_attn.\1_proj.", key)  # of a text encoder

    return {named(key): value for key, value in convert_unet_state_dict_to_peft(by_key).items()}


def _layer(network: nn.Module | None, path: str) -> nn.Module | None:
    if network is None:
        return None
    for candidate in (path, path.removeprefix("text_model.")):  # newer text encoders have no such level
        try:
            return network.get_submodule(candidate)
        except AttributeError:
            continue
    return None


def _fits(layer: nn.Module, down: Tensor, up: Tensor) -> bool:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim not in (2, 4):
        return False
    return weight.shape[0] == up.shape[0] and weight.shape[1] == down.shape[1] and up.shape[1] == down.shape[0]


def _add(layer: nn.Module, down: Tensor, up: Tensor, scale: float) -> None:
    weight: Any = layer.weight
    if weight.ndim == 4:  # a convolution: up is 1 x 1
        down = down if down.ndim == 4 else down[..., None, None]
        delta = torch.einsum("or,rihw->oihw", up.float().flatten(1), down.float())
    else:
        delta = up.float().flatten(1) @ down.float().flatten(1)
    weight.copy_(weight.float() + scale * delta.to(weight.device))


# ---- Textual inversion


class WithWords:
    """A tokenizer that knows words of textual inversion (arXiv:2208.01618), some of them several vectors long.

    Called as a tokenizer is; offsets stay characters of the prompt as written, and every vector of a word has its span.
    """

    is_fast = True

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.vectors: dict[int, tuple[int, ...]] = {}  # id of a word -> ids of its vectors

    def add(self, word: str, count: int) -> tuple[int, ...]:
        """The ids of a new word's vectors."""
        from tokenizers import AddedToken

        names = [word] + [f"{word}_{i}" for i in range(1, count)]
        if names[0] in self.tokenizer.get_vocab():
            raise InputRefused(f"The model already has a word {printable(word)}; name the file otherwise.")
        self.tokenizer.add_tokens([AddedToken(name, single_word=True) for name in names])  # a toy, and no toyshop
        ids = tuple(self.tokenizer.convert_tokens_to_ids(names))
        self.vectors[ids[0]] = ids
        return ids

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, prompt: str, **options: Any) -> Any:
        places = self.tokenizer(prompt, return_offsets_mapping=True, verbose=False)
        ids, offsets = [], []
        for token, span in zip(places["input_ids"], places["offset_mapping"], strict=True):
            every = self.vectors.get(token, (token,))
            ids += every
            offsets += [span] * len(every)
        length = int(options.get("max_length") or len(ids))
        if options.get("truncation") and len(ids) > length:
            ids, offsets = [*ids[: length - 1], ids[-1]], [*offsets[: length - 1], offsets[-1]]  # the end token stays
        if options.get("padding") == "max_length":
            missing = length - len(ids)
            ids, offsets = ids + [self.tokenizer.pad_token_id] * missing, offsets + [(0, 0)] * missing
        if options.get("return_tensors") == "pt":
            return {"input_ids": torch.tensor([ids])}
        return {"input_ids": ids, "offset_mapping": offsets}


@torch.no_grad()
def add_words(file: str, tokenizers: Sequence[WithWords], text_encoders: Sequence[Any]) -> str:
    """Teach a model the word of a textual inversion file, and say which it is. InputRefused: no such file, or one of
    another model.

    Its name is the one in the file where there is one, else the file's own. SDXL's files hold `clip_l` and `clip_g`, a
    part for each text encoder.
    """
    from safetensors.torch import load_file

    path = Path(file)
    shown = printable(path.name)
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        raise InputRefused(f"There is no textual inversion file {shown}: give a .safetensors file.")
    try:
        found = load_file(path)
    except Exception as error:  # a file that is not safetensors raises the reader's own kinds
        raise InputRefused(f"{shown} cannot be read: it is damaged or of another kind.") from error
    word, parts = path.stem, list(found.values())
    if len(found) == 1 and "emb_params" not in found:
        word = next(iter(found))
    elif {"clip_l", "clip_g"} <= found.keys():
        parts = [found["clip_l"], found["clip_g"]]
    parts = [part if part.ndim == 2 else part[None] for part in parts]
    # SDXL's encoders, or the first of those that a file of one part can be meant for.
    encoders = [encoder for encoder in text_encoders if hasattr(encoder, "get_input_embeddings")][: len(parts)]
    fits = len(encoders) == len(parts) and all(
        part.ndim == 2 and part.shape[1] == encoder.get_input_embeddings().weight.shape[1]
        for part, encoder in zip(parts, encoders, strict=True)
    )
    if not fits or len({len(part) for part in parts}) != 1:
        raise InputRefused(f"{shown} is no textual inversion of this model: its vectors have another size.")
    for tokenizer, encoder, part in zip(tokenizers, encoders, parts, strict=False):
        ids = tokenizer.add(word, len(part))
        encoder.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
        weight = encoder.get_input_embeddings().weight
        weight[list(ids)] = part.to(weight.device, weight.dtype)
    return word
