"""What the results of an evaluation score, one by one; kept in a file, so that nothing is measured twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdsedit.errors import InputRefused, printable
from sdsedit.evaluate.datasets import PIE_SIDE, Case, decode_mask
from sdsedit.metrics import clip_ratio, directional_similarity, l1, psnr, similarity

CLIP = "openai/clip-vit-base-patch32"  # ViT-B/32, as MagicBrush's and LUSD's evaluations have it
VERSION = 1  # of what is below: another one measures all anew
FIELDS = ("clip_t", "clip_i", "l1", "lpips", "clip_r", "direction", "psnr_outside")
Lpips = Callable[[Tensor, Tensor], Tensor]


class Clip:
    """CLIP's embeddings of pictures and texts, [N, D] float32. Loaded from a folder or the local cache; nothing is
    downloaded.

    allow_pickle: also read weights that are only there as .bin; such files can run code when they are opened.
    InputRefused: it is not there, or there as a pickle only.
    """

    def __init__(self, spec: str, device: torch.device | str, allow_pickle: bool = False) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        self.name = spec
        shown = printable(Path(spec).name if Path(spec).is_dir() else spec)
        pickled = _has(spec, "pytorch_model.bin") and not _has(spec, "model.safetensors")
        if pickled and not allow_pickle:
            raise InputRefused(
                f"The CLIP model {shown} is only there as a pickle, which can run code when opened: add "
                "--allow-pickle, or name a folder with model.safetensors."
            )
        try:
            model: Any = CLIPModel.from_pretrained(spec, local_files_only=True, use_safetensors=not pickled)
            self.tokenizer: Any = CLIPTokenizer.from_pretrained(spec, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputRefused(f"The CLIP model {shown} is not on this machine: hf download {shown}.") from error
        if len(self.tokenizer) < model.config.text_config.vocab_size:  # its files are missing: transformers made one
            raise InputRefused(f"The tokenizer of the CLIP model {printable(Path(spec).name)} is missing.")
        self.model = model.eval().requires_grad_(False).to(device)
        self.device = device
        self.side = int(model.config.vision_config.image_size)

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Shorter side to CLIP's size, the middle square, its own mean and deviation: OpenAI's preprocessing."""
        batch = torch.stack([self._prepared(each) for each in pictures]).to(self.device)
        return self.model.visual_projection(self.model.vision_model(batch).pooler_output).float().cpu()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        given = self.tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True,
                               max_length=self.model.config.text_config.max_position_embeddings)  # fmt: skip
        said = self.model.text_model(**{name: each.to(self.device) for name, each in given.items()})
        return self.model.text_projection(said.pooler_output).float().cpu()

    def _prepared(self, picture: Image.Image) -> Tensor:  # [3, side, side]
        scale = self.side / min(picture.size)
        width, height = (max(round(each * scale), self.side) for each in picture.size)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        small = picture.resize((width, height), Image.Resampling.BICUBIC)
        x = _tensor(small.crop((left, top, left + self.side, top + self.side)))[0]
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
        return (x - mean) / torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def _has(spec: str, name: str) -> bool:
    """Whether a folder, or a model of the local cache, has a file."""
    from huggingface_hub import try_to_load_from_cache

    if Path(spec).is_dir():
        return (Path(spec) / name).is_file()
    try:
        return isinstance(try_to_load_from_cache(spec, name), str)
    except ValueError:  # no name of a hub model
        return False


def load_lpips(device: torch.device | str) -> Lpips | str:
    """LPIPS (arXiv:1801.03924) with AlexNet, or a few words on why not. Nothing is downloaded."""
    if find_spec("lpips") is None:
        return "not installed"
    weights = Path(torch.hub.get_dir()) / "checkpoints"
    if not any(weights.glob("alexnet-*.pth")):
        return "its AlexNet is not here"
    import lpips  # pyright: ignore[reportMissingImports]

    model = lpips.LPIPS(net="alex", verbose=False).eval().requires_grad_(False).to(device)

    def distance(a: Tensor, b: Tensor) -> Tensor:  # [1, 3, H, W] in 0..1, twice
        with torch.inference_mode():
            return model((a * 2 - 1).to(device), (b * 2 - 1).to(device)).flatten().cpu()

    return distance


def score(case: Case, result: Path, clip: Clip | None, lpips: Lpips | str) -> dict[str, float | None]:
    """The numbers of one result, by FIELDS; None: cannot be said.

    With a person's result (MagicBrush) L1, LPIPS and CLIP-I compare with that, over whole pictures. Without one
    (PIE-Bench) L1, LPIPS and PSNR compare with the source outside the mask, and CLIP-I with the source.
    """
    before, after = _open(case.image), _open(result)
    true = before if case.truth is None else _open(case.truth)
    a, b = _tensor(after if after.size == true.size else after.resize(true.size)), _tensor(true)
    mask = None
    if case.mask is not None:
        if before.size != (PIE_SIDE, PIE_SIDE):
            raise InputRefused(f"The picture of {case.id} is not {PIE_SIDE} x {PIE_SIDE}, and its mask is.")
        mask = torch.from_numpy(decode_mask(case.mask).astype(np.float32))[None, None]
    found: dict[str, float | None] = dict.fromkeys(FIELDS)
    outside = mask is None or bool((mask == 0).any())
    if outside:
        found["l1"] = l1(a, b, mask).item()
        if mask is not None:
            found["psnr_outside"] = psnr(a, b, mask).clamp(max=99.0).item()
        if not isinstance(lpips, str):
            kept = 1.0 if mask is None else 1 - mask
            found["lpips"] = lpips(a * kept, b * kept).item()
    if clip is not None:
        e_before, e_after, e_true = clip.pictures([before, after, true]).split(1)
        t_caption, t_source, t_target = clip.texts([case.caption, case.source, case.target]).split(1)
        found["clip_t"] = similarity(e_after, t_caption).item()
        found["clip_i"] = similarity(e_after, e_true).item()
        found["clip_r"] = clip_ratio(e_before, e_after, t_target).item()
        found["direction"] = directional_similarity(e_before, e_after, t_source, t_target).item()
    return found


def measured(
    results: Sequence[tuple[str, Case, Path]],  # method, case, its result
    file: Path,
    clip: Clip | None,
    lpips: Lpips | str,
) -> Iterator[dict[str, Any]]:
    """The scores of every result in turn: {"method", "case", "type", FIELDS...}. What `file` holds of the same bytes
    and the same measure is not measured again; each new one is added to it at once."""
    measure = f"{VERSION} {clip.name if clip else '-'} {'lpips' if not isinstance(lpips, str) else '-'}"
    known: dict[tuple[str, str, str], dict[str, Any]] = {}
    if file.is_file():
        for line in file.read_text("utf-8").splitlines():
            try:
                entry = json.loads(line)
                known[entry["method"], entry["case"], entry["of"]] = entry
            except (ValueError, KeyError, TypeError):  # a line that a power cut halved
                continue
    with file.open("a", encoding="ascii") as lines:
        if file.stat().st_size and not file.read_bytes().endswith(b"\n"):
            lines.write("\n")
        for method, case, result in results:
            of = hashlib.sha256(f"{measure} {case}".encode() + result.read_bytes()).hexdigest()
            entry = known.get((method, case.id, of))
            if entry is None:
                entry = {"method": method, "case": case.id, "type": case.type, "of": of}
                entry |= score(case, result, clip, lpips)
                lines.write(json.dumps(entry) + "\n")
                lines.flush()
            yield {name: value for name, value in entry.items() if name != "of"}


def _open(file: Path) -> Image.Image:
    from sdsedit.io.images import read_picture

    return Image.fromarray(read_picture(file).rgb)


def _tensor(picture: Image.Image) -> Tensor:  # [1, 3, H, W] in 0..1
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
