"""What else pulls on a sketch beside distillation: likeness to the guide picture, in features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdsedit.guidance.attention_distillation import observe, see, style_loss
from sdsedit.prior.base import Prior, Text
from sdsedit.representations.image import look_of
from sdsedit.representations.sketch import Term

CLIP = "openai/clip-vit-base-patch32"
_STYLE_T = 0.25  # t that the UNet is told when it looks at looks
_DIFT_T = 0.15  # t at which the UNet looks: little noise, for it should see the picture
_CLIP_LAYERS = (3, 6, 9)


def own_terms(
    prior: Prior,
    guide: Tensor,  # [1, 3, H, W] in 0..1, what the page should look like
    text: Text,
    generator: torch.Generator,
) -> dict[str, Term]:
    """Likeness in the features of the model itself: its autoencoder's encoder, and its UNet at little noise.

        L(page) = mean over layers of |f_l(page) / |f_l(page)| - f_l(guide) / |f_l(guide)||^2

    with |.| over channels, as LPIPS (arXiv:1801.03924) compares features, without its learnt weights.
    """
    with torch.no_grad():
        wanted = prior.encoder_features(guide)
        z_guide = prior.encode(guide)
        t = torch.full((1,), _DIFT_T, device=z_guide.device)
        noise = torch.randn(z_guide.shape, generator=generator).to(z_guide.device)
        seen = prior.network_features(prior.schedule.add_noise(z_guide, noise, t), t, text)

    def encoder(page: Tensor) -> Tensor:
        return _unlike(prior.encoder_features(page), wanted)

    def network(page: Tensor) -> Tensor:
        z_t = prior.schedule.add_noise(prior.encode(page), noise, t)
        return _unlike(prior.network_features(z_t, t, text), seen)

    return {"encoder features": encoder, "UNet features": network}


def style_term(prior: Prior, references: Sequence[Tensor], empty: Text) -> Term:
    """The look of references [1, 3, H, W]: L_AD of the rendered page, at one t (see attention_distillation)."""
    t = torch.full((1,), _STYLE_T, device=prior.device)
    look = look_of(prior, references)
    with torch.no_grad():
        seen = see(prior, look, t, empty)

    def style(page: Tensor) -> Tensor:
        return style_loss(observe(prior, prior.encode(page), t, empty, look.layers), seen.references)

    return style


def clip_terms(guide: Tensor, prompt: str, folder: str | Path = CLIP) -> dict[str, Term] | None:
    """Likeness in CLIP (arXiv:2103.00020): hidden layers 3, 6, 9 of the picture tower, as CLIPasso (arXiv:2202.05822)
    has it with a ResNet's, and 1 - cos of page and prompt. None where its weights are not on this machine: nothing is
    downloaded."""
    from transformers import CLIPModel, CLIPTokenizer

    try:
        model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError):
        return None
    if len(tokenizer) < model.config.text_config.vocab_size:  # without its files, transformers makes an empty one
        return None
    model = model.eval().requires_grad_(False).to(guide.device)
    side = model.config.vision_config.image_size
    mean = guide.new_tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)  # CLIP's own
    deviation = guide.new_tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)

    def see(image: Tensor):
        x = F.interpolate(image, (side, side), mode="bicubic", antialias=True, align_corners=False)
        return model.vision_model((x - mean) / deviation, output_hidden_states=True)

    with torch.no_grad():
        depth = model.config.vision_config.num_hidden_layers
        wanted = [see(guide).hidden_states[k] for k in _CLIP_LAYERS if k <= depth]
        words = tokenizer([prompt], return_tensors="pt", truncation=True).to(guide.device)
        said = model.text_projection(model.text_model(**words).pooler_output)

    def layers(page: Tensor) -> Tensor:
        hidden = see(page).hidden_states
        return torch.stack([F.mse_loss(hidden[k], w) for k, w in zip(_CLIP_LAYERS, wanted, strict=False)]).mean()

    def words_and_page(page: Tensor) -> Tensor:
        shown = model.visual_projection(see(page).pooler_output)
        return 1 - F.cosine_similarity(shown, said).mean()

    return {"CLIP layers": layers, "CLIP text": words_and_page}


def _unlike(features: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> Tensor:
    total = [
        (F.normalize(f, dim=1) - F.normalize(w, dim=1)).square().sum(1).mean()
        for f, w in zip(features, wanted, strict=True)
    ]
    return torch.stack(total).mean()
