"""Train the judge: a small classifier that reads subject, colour, accessory and background off a 128 x 128 picture.

It is trained on two families of art (Fluent flat, Noto), as scenes and as line drawings, and tested on scenes of a
third (Noto v1) and on held-out combinations; the denoiser never sees it.  `benchmarks/edits.py` asks it whether an edit
was done, `benchmarks/sketches.py` what a sketch shows: its line drawings are bent and broken, as a sketch's lines are.

    python -m training.judge --vae assets/builtin/vae --out benchmarks/judge.safetensors --minutes 5

With `--solids` it learns to read solids seen from anywhere instead, for `benchmarks/splat_edits.py`: what the thing in
the middle is ("nothing" is an answer), its colour, what it wears, the ground.

    python -m training.judge --solids --vae assets/builtin/vae --out benchmarks/solids_judge.safetensors --minutes 5
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import solids
from .art import ACCESSORIES, NOUNS
from .run import Progress
from .scenes import BACKGROUNDS, COLOURS, SIZE, Scene, drawable, random_drawing, random_scene, render

QUESTIONS = {
    "noun": list(NOUNS),
    "colour": ["none", *COLOURS],
    "accessory": ["none", *ACCESSORIES],
    "background": list(BACKGROUNDS),
}

SOLID_QUESTIONS = {
    "noun": ["nothing", *solids.SOLIDS],
    "colour": ["none", *COLOURS],
    "accessory": ["none", *solids.WORN],
    "background": list(solids.GROUNDS),
}


class Judge(nn.Module):
    """Convolutions on the half-size picture, global average and maximum, one linear answer a question."""

    def __init__(self, questions: dict[str, list[str]] = QUESTIONS) -> None:
        super().__init__()
        self.questions = questions
        widths = (3, 32, 64, 96, 128)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
            layers += [nn.Conv2d(b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers)
        self.answers = nn.ModuleDict(
            {name: nn.Linear(2 * widths[-1], len(options)) for name, options in questions.items()}
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """image [B, 3, 128, 128] in 0..1 -> logits [B, options] of each question."""
        x = self.body(F.avg_pool2d(image, 2) * 2 - 1)
        x = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)
        return {name: answer(x) for name, answer in self.answers.items()}

    @torch.inference_mode()
    def read(self, image: Tensor) -> list[dict[str, str]]:
        """What each picture of [B, 3, 128, 128] shows, as words."""
        logits = self.eval()(image.float())
        picks = {name: value.argmax(1).tolist() for name, value in logits.items()}
        return [{name: self.questions[name][picks[name][b]] for name in picks} for b in range(len(image))]


def load_judge(path: Path, questions: dict[str, list[str]] = QUESTIONS) -> Judge:
    from safetensors.torch import load_file

    judge = Judge(questions)
    judge.load_state_dict({name: value.float() for name, value in load_file(path).items()}, strict=False)
    return judge.eval()


def answers(scene: Scene) -> dict[str, str]:
    """The right answers for a scene."""
    return {
        "noun": scene.noun,
        "colour": scene.colour or "none",
        "accessory": scene.accessory or "none",
        "background": scene.background,
    }


def labels(scenes: list[Scene]) -> dict[str, Tensor]:
    return {name: torch.tensor([QUESTIONS[name].index(answers(s)[name]) for s in scenes]) for name in QUESTIONS}


def draw(count: int, seed: int, family: str, held_out: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """uint8 pictures [count, 3, 128, 128] and their labels."""
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(rng, held_out=held_out)
        if drawable(scene, family):
            scenes.append(scene)
    pictures = torch.from_numpy(np.stack([render(s, family).image for s in scenes])).permute(0, 3, 1, 2)
    return pictures.contiguous(), labels(scenes)


def draw_rough(count: int, seed: int, family: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Line drawings, lines bent by up to 3 pixels, broken and pale in places: uint8 [count, 3, 128, 128], labels."""
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_drawing(rng)
        if drawable(scene, family):
            scenes.append(scene)
    pictures = torch.from_numpy(np.stack([render(s, family).image for s in scenes])).permute(0, 3, 1, 2).float() / 255
    generator = torch.Generator().manual_seed(seed)
    bend = F.interpolate(torch.randn(count, 2, 9, 9, generator=generator), (SIZE, SIZE), mode="bicubic")
    amount = 2.4 / SIZE * torch.rand(count, 1, 1, 1, generator=generator)
    grid = F.affine_grid(torch.eye(2, 3).expand(count, -1, -1), [count, 3, SIZE, SIZE], align_corners=False)
    bent = F.grid_sample(1 - pictures, grid + (bend * amount).permute(0, 2, 3, 1), align_corners=False)
    fade = F.interpolate(torch.rand(count, 1, 24, 24, generator=generator), (SIZE, SIZE), mode="bilinear")
    gaps = 0.35 * torch.rand(count, 1, 1, 1, generator=generator)
    bent = bent * ((fade - gaps) / 0.1).clamp(0, 1) * (0.6 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator))
    return (1 - bent).mul(255).round().clamp(0, 255).byte().contiguous(), labels(scenes)


def draw_solids(count: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Worlds seen from anywhere, one in eight with nothing in the middle: uint8 [count, 3, 128, 128], labels."""
    rng = np.random.default_rng(seed)
    pictures = torch.empty(count, 3, SIZE, SIZE, dtype=torch.uint8)
    said: dict[str, list[int]] = {name: [] for name in SOLID_QUESTIONS}
    for row in range(count):
        world = solids.sample_world(rng)
        view, K = solids.sample_camera(rng, world)
        image, shares, _ = solids.render(world, view, K, SIZE, SIZE)
        size = dict(zip(solids.parts(world), shares.sum((0, 1)), strict=True))
        thing = max(world.things, key=lambda each: size[each.noun])
        answer = {"noun": thing.noun, "colour": thing.colour or "none", "accessory": thing.worn or "none"}
        if rng.random() < 0.125:
            world = replace(world, things=tuple(each for each in world.things if each is not thing))
            image = solids.render(world, view, K, SIZE, SIZE)[0]
            answer = {"noun": "nothing", "colour": "none", "accessory": "none"}
        pictures[row] = torch.from_numpy(image).permute(2, 0, 1)
        for name, options in SOLID_QUESTIONS.items():
            said[name].append(options.index({**answer, "background": world.ground}[name]))
    return pictures, {name: torch.tensor(values) for name, values in said.items()}


@torch.inference_mode()
def accuracy(judge: Judge, pictures: Tensor, truth: dict[str, Tensor]) -> dict[str, float]:
    judge.eval()
    hits = dict.fromkeys(judge.questions, 0)
    for k in range(0, len(pictures), 64):
        logits = judge(pictures[k : k + 64].float() / 255)
        for name in hits:
            hits[name] += int((logits[name].argmax(1) == truth[name][k : k + 64]).sum())
    judge.train()
    return {name: round(hits[name] / len(pictures), 3) for name in hits}


@torch.inference_mode()
def as_decoded(vae, pictures: Tensor, seed: int) -> Tensor:
    """The uint8 pictures [N, 3, 128, 128] as the decoder would show them, from latents with a little noise."""
    generator, out = torch.Generator().manual_seed(seed), []
    for part in pictures.split(32):
        with torch.autocast("cpu", torch.bfloat16):
            z = vae.encoder(part.float() / 127.5 - 1)
            z = z + 0.15 * torch.rand(len(z), 1, 1, 1, generator=generator) * torch.randn(z.shape, generator=generator)
            out.append(vae.decoder(z).float().clamp(-1, 1).add(1).mul(127.5).round().byte())
    return torch.cat(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--scenes", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--solids", action="store_true", help="solids seen from anywhere instead of flat art")
    args = parser.parse_args()
    from diffusers import AutoencoderTiny
    from safetensors.torch import save_file

    torch.manual_seed(args.seed)
    vae = AutoencoderTiny.from_pretrained(args.vae).float().eval()
    questions = SOLID_QUESTIONS if args.solids else QUESTIONS
    if args.solids:
        parts = [draw_solids(args.scenes, 51)]
        tests = {"solids of other seeds": draw_solids(400, 61)}
    else:
        parts = [draw(args.scenes, 51, "fluent-flat"), draw(args.scenes // 3, 52, "noto")]
        parts += [draw_rough(args.scenes // 2, 53, "fluent-flat"), draw_rough(args.scenes // 5, 54, "noto")]
        tests = {
            "fluent-flat, held-out combinations": draw(400, 61, "fluent-flat", held_out=True),
            "noto-v1, held-out art": draw(400, 62, "noto-v1"),
            "fluent-flat, rough line drawings": draw_rough(400, 63, "fluent-flat"),
        }
    pictures = torch.cat([part[0] for part in parts])
    truth = {name: torch.cat([part[1][name] for part in parts]) for name in questions}
    decoded = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(args.seed))[: args.scenes // 3]
    pictures = torch.cat([pictures, as_decoded(vae, pictures[decoded], args.seed)])
    truth = {name: torch.cat([values, values[decoded]]) for name, values in truth.items()}
    judge = Judge(questions).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    progress, generator, step = Progress(), torch.Generator().manual_seed(args.seed), 0
    while progress.minutes() < args.minutes:
        optimizer.param_groups[0]["lr"] = 2e-3 * max(0.01, 1 - progress.minutes() / args.minutes)
        rows = torch.randint(len(pictures), (32,), generator=generator)
        x = pictures[rows].float() / 255
        x = x * (1 + 0.1 * torch.randn(32, 3, 1, 1, generator=generator)) + 0.04 * torch.randn(
            32, 3, 1, 1, generator=generator
        )
        shift = torch.randint(-6, 7, (2,), generator=generator).tolist()
        x = x.roll(shift, (2, 3)).clamp(0, 1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = judge(x.to(memory_format=torch.channels_last))
        loss = sum(F.cross_entropy(logits[n].float(), truth[n][rows], label_smoothing=0.05) for n in questions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if progress(step, 32, loss=loss.detach()):
            print({name: accuracy(judge, *test) for name, test in tests.items()}, flush=True)
    print({name: accuracy(judge, *test) for name, test in tests.items()})
    state = {n: v.half() if v.is_floating_point() else v for n, v in judge.state_dict().items()}
    save_file({n: v.contiguous() for n, v in state.items()}, args.out)


if __name__ == "__main__":
    main()
