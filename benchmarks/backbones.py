"""The published models at their true configuration: parameters, shapes, which attention is read, memory.

    python -m benchmarks.backbones               # prints the table of docs/models.md and writes it there
    python -m benchmarks.backbones sd15 sdxl     # prints some of it
    python -m benchmarks.backbones --check sd15  # `sdsedit doctor --model` on it with random weights, 9 GB

Nothing is downloaded and nothing is computed: the networks are built on torch's meta device, where tensors have a shape
and no storage, and one prediction is made there with the attention probe listening, at the model's own size. So what is
in the table is what the code does with these settings, not what somebody wrote down; parameters are counted.

benchmarks/configs/NAME.json holds a model's settings and says where they are from.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from sdsedit.attention.joint import is_joint, joint_blocks
from sdsedit.attention.probe import AttentionProbe
from sdsedit.known_models import KNOWN_MODELS
from sdsedit.prior.base import Text
from sdsedit.prior.mmdit import MMDiTPrior
from sdsedit.prior.unet import UNetPrior

CONFIGS = Path(__file__).resolve().parent / "configs"
BUILTIN = Path(__file__).resolve().parents[1] / "assets" / "builtin"
OUT = Path(__file__).resolve().parents[1] / "docs" / "models.md"
NAMES = ("sd15", "sd21", "sdxl", "koala-700m", "koala-1b", "sd3-medium", "sd35-medium", "sd35-large",
         "flux1-dev", "flux1-schnell")  # fmt: skip
BEGIN, END = "<!-- table: python -m benchmarks.backbones -->", "<!-- end of the table -->"


@lru_cache
def config(name: str) -> dict[str, Any]:
    """The settings of a model: id, source, network, vae, text_encoders, scheduler."""
    return json.loads((CONFIGS / f"{name}.json").read_text("utf-8"))


def build(name: str, device: str = "meta", text: bool = True) -> UNetPrior | MMDiTPrior:
    """The prior of a published configuration, with weights of no value (on the meta device: of no storage).

    text: whether with its text encoders; without them they are of one layer, for tests that need none. Its tokenizers
    know no words: texts are made by `blank_text`.
    """
    import diffusers
    import transformers

    given = config(name)
    with torch.device(device):
        network = _made(diffusers, given["network"])
        vae = _made(diffusers, {"class": "AutoencoderKL", **given["vae"]})
        encoders = []
        for each in given["text_encoders"]:
            settings = {key: value for key, value in each.items() if key != "class"}
            t5 = each["class"].startswith("T5")
            if not text:
                settings["num_layers" if t5 else "num_hidden_layers"] = 1
            own = transformers.T5Config if t5 else transformers.CLIPTextConfig
            encoders.append(getattr(transformers, each["class"])(own(**settings)))
    tokenizers = [_tokenizer(encoder) for encoder in encoders]
    scheduler = _made(diffusers, given["scheduler"])
    if is_joint(network):
        return MMDiTPrior(name, network, vae, tokenizers, encoders, scheduler, device)
    return UNetPrior(name, network, vae, tokenizers, encoders, scheduler, device)


def _made(library: Any, settings: dict[str, Any]) -> Any:
    rest = {key: value for key, value in settings.items() if key != "class"}
    return getattr(library, settings["class"])(**rest)


def _tokenizer(encoder: Any) -> Any:
    import transformers

    if type(encoder).__name__.startswith("T5"):
        pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        return transformers.T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)
    pieces = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    return transformers.CLIPTokenizer(vocab=pieces, merges=[], model_max_length=77)


def blank_text(prior: UNetPrior | MMDiTPrior, rows: int, seed: int = 0) -> Text:
    """A text of the right shape, of random numbers, for a network whose tokenizer knows no words."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(prior, MMDiTPrior):
        net: Any = prior.transformer.config
        width, pooled = net.joint_attention_dim, net.pooled_projection_dim
        guidance = None if prior.distilled_guidance is None else torch.ones(rows, device=prior.device)
    else:
        net = prior.unet.config
        width, guidance = net.cross_attention_dim, None
        pooled = None
        if net.addition_embed_type == "text_time":
            pooled = net.projection_class_embeddings_input_dim - 6 * net.addition_time_embed_dim

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(prior.device, prior.dtype)

    embeds = normal(rows, prior.max_tokens, width)
    return Text(("",) * rows, embeds, None if pooled is None else normal(rows, pooled), guidance)


@dataclass(frozen=True)
class Facts:
    """What a configuration turned out to be."""

    name: str
    network: int  # parameters
    text: int
    vae: int
    predicts: str
    native: int  # pixels
    words: tuple[int, int]  # grid of the words' maps
    refined: tuple[int, int]
    recorded: str  # which layers
    bytes_together: int  # 16-bit network and text encoders, 32-bit autoencoder
    bytes_apart: int  # the largest of the three


@torch.inference_mode()
def examine(name: str) -> Facts:
    """Build a model on the meta device and make one prediction with the probe listening."""
    prior = build(name)
    network: Any = prior.transformer if isinstance(prior, MMDiTPrior) else prior.unet
    side = prior.native // prior.factor
    z = torch.empty(2, prior.channels, side, side, device="meta")
    probe = AttentionProbe((5,), slice(0, 1))
    with probe.attach(network, 2, (side, side)):
        kinds = [type(each).__name__ for each in network.attn_processors.values()]
    found = prior.predict(z, torch.tensor([0.5], device="meta"), blank_text(prior, 2), probe)
    assert found.eps.shape == z.shape
    picture = torch.empty(1, 3, prior.native, prior.native, device="meta")
    assert prior.decode(prior.encode(picture)).shape == picture.shape
    counts = [sum(w.numel() for w in part.parameters()) for part in (network, prior.text_encoders, prior.vae)]
    sizes = [2 * counts[0], 2 * counts[1], 4 * counts[2]]
    listening = sum(kind in ("_Listener", "JointListener") for kind in kinds)
    recorded = f"{listening} of {len(kinds)} layers"
    if is_joint(network):
        blocks = len(network.transformer_blocks)
        recorded = f"joint blocks {', '.join(str(i) for i in joint_blocks(blocks))} of {blocks}"
    return Facts(
        name, *counts, prior.schedule.prediction, prior.native,
        tuple(found.maps.cross.shape[-2:]), tuple(found.maps.refined.shape[-2:]), recorded, sum(sizes), max(sizes),
    )  # fmt: skip


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"


def row(facts: Facts) -> str:
    """A line of the table."""
    id = config(facts.name)["id"]
    known = KNOWN_MODELS[id]
    grids = f"words {facts.words[0]} x {facts.words[1]}, refined {facts.refined[0]} x {facts.refined[1]}"
    memory = f"{facts.bytes_together / 2**30:.1f} GiB, {facts.bytes_apart / 2**30:.1f} GiB"
    parts = f"{_millions(facts.network)} + {_millions(facts.text)} + {_millions(facts.vae)}"
    kind = {"epsilon": "noise", "v_prediction": "v", "flow": "velocity of a flow"}[facts.predicts]
    cells = (
        f"`{id}`",
        f"{facts.native} px",
        parts,
        kind,
        f"{grids}; {facts.recorded}",
        memory,
        known.licence,
        known.how,
    )
    return "| " + " | ".join(f"`{cell}`" if cell.startswith("hf ") else cell for cell in cells) + " |"


def table(names: tuple[str, ...] = NAMES) -> str:
    """The table of docs/models.md."""
    head = ("model", "size", "parameters: network + text + autoencoder", "predicts", "attention that is read",
            "memory of the weights, and with --offload", "licence", "how to get it")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(row(examine(name)) for name in names)])


def check(name: str) -> int:
    """Write a model's whole folder with random weights, as a hub has it, and run the doctor's check-up of it: an edit
    at its own size, from words to a picture. Its tokenizer is the built-in model's, whose words are fewer."""
    import diffusers
    import transformers

    from sdsedit.doctor import check_model

    torch.manual_seed(0)
    given = config(name)
    (encoder,) = given["text_encoders"]
    settings = {key: value for key, value in encoder.items() if key != "class"}
    tokenizer = transformers.CLIPTokenizer.from_pretrained(BUILTIN / "tokenizer", model_max_length=77)
    pipe = diffusers.StableDiffusionPipeline(
        vae=_made(diffusers, {"class": "AutoencoderKL", **given["vae"]}),
        text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**settings)),
        tokenizer=tokenizer,
        unet=_made(diffusers, given["network"]),
        scheduler=_made(diffusers, given["scheduler"]),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(Path(folder) / name)
        del pipe
        return check_model(str(Path(folder) / name))


def main() -> None:
    """Print the table, and put the whole one into docs/models.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="which models (default: all, written to docs/)")
    parser.add_argument("--check", choices=("sd15", "sd21"), help="the doctor's check-up of one")
    arguments = parser.parse_args()
    if arguments.check:
        sys.exit(check(arguments.check))
    names = tuple(arguments.names)
    text = table(names or NAMES)
    print(text)
    if not names:
        page = OUT.read_text("utf-8")
        head, _, rest = page.partition(BEGIN)
        _, _, tail = rest.partition(END)
        OUT.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", "utf-8")


if __name__ == "__main__":
    main()
