"""The denoiser's parts keep their laws, and a training of three steps makes a model that the engine loads."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from training import denoiser, export
from training.art import ACCESSORIES, NOUNS
from training.autoencoder import build as build_autoencoder
from training.cache import COLUMNS, GRID, PLACE, Cache, load, tagged, tagged_world
from training.denoiser import (
    MAX_TOKENS,
    Batches,
    Captions,
    RecordedCrossAttention,
    attention_loss,
    attention_target,
    record_cross_attention,
    stratified_t,
)
from training.run import Progress, load_checkpoint
from training.scenes import BACKGROUNDS, COLOURS, Scene, caption, random_drawing, random_scene
from training.solids import Thing, World

STEPS = 3


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    return denoiser.build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def unet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return denoiser.build_unet().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def cache() -> Cache:
    """Eight scenes with random latents, every other one dressed."""
    rng = np.random.default_rng(0)
    found = [random_scene(rng, accessory_share=k % 2) for k in range(8)]
    masks = np.zeros((8, PLACE, GRID, GRID), np.uint8)
    masks[:, :2] = rng.integers(0, 128, (8, 2, GRID, GRID))
    masks[:, PLACE - 1] = 255 - masks[:, 0] - masks[:, 1]
    latents, bare = rng.normal(0, 2, (2, 8, 4, 32, 32)).astype(np.float16)
    captions = np.array([tagged(scene) for scene in found])
    return Cache(latents, bare, masks, captions, np.array([tagged(scene, place=False) for scene in found]))


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_every_word_of_the_world_is_one_token(tokenizer):
    words = {"wearing", "a", "an"}
    for phrase in [*NOUNS, *ACCESSORIES, *COLOURS, *BACKGROUNDS.values()]:
        words |= set(phrase.split())
    for word in sorted(words):
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1, word
    assert len(tokenizer) < 2000


def test_offsets_say_where_each_token_stands(tokenizer):
    prompt = "a purple koala wearing a top hat on a wooden table"
    coded = tokenizer(prompt, return_offsets_mapping=True, padding="max_length", truncation=True)
    spans = [(a, b) for a, b in coded["offset_mapping"] if b > a]
    assert [prompt[a:b] for a, b in spans] == prompt.split()
    assert len(coded["input_ids"]) == MAX_TOKENS
    assert coded["offset_mapping"][0] == (0, 0) and coded["input_ids"][0] == tokenizer.bos_token_id


@pytest.mark.parametrize("text", ["a zebra's top-hat", "ünïcode 漢字 🐱", "Two CATS, 3 hats!"])
def test_any_text_is_spelled_without_an_unknown_token(tokenizer, text: str):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.eos_token_id not in ids  # which stands for unknown too
    assert tokenizer.decode(ids).replace(" ", "") == text.lower().replace(" ", "")


def test_the_tokenizer_is_the_same_every_time(tokenizer, tmp_path: Path):
    again = denoiser.build_tokenizer(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()


# --- captions ---------------------------------------------------------------------------------------------------------


def test_the_tokens_of_a_caption_are_those_of_its_text(tokenizer):
    captions, rng = Captions(tokenizer), np.random.default_rng(1)
    for k in range(60):
        scene = random_drawing(rng) if k % 4 == 0 else random_scene(rng)
        ids, groups = captions(tagged(scene))
        assert ids == tokenizer(caption(scene), padding="max_length", truncation=True).input_ids
        assert len(groups) == MAX_TOKENS


def grouped(tokenizer, text: str) -> dict[int, list[str]]:
    """The words of each group."""
    found: dict[int, list[str]] = {}
    for token, group in zip(*Captions(tokenizer)(text), strict=True):
        if group:
            found.setdefault(group, []).append(tokenizer.decode([token]).strip())
    return found


def test_groups_name_the_subject_the_thing_worn_and_the_place(tokenizer):
    scene = Scene("cat", "blue", "top hat", "table", 64, 76, 96, False, 0)
    assert grouped(tokenizer, tagged(scene)) == {1: ["blue", "cat"], 2: ["top", "hat"], PLACE: ["wooden", "table"]}
    scene = Scene("owl", None, "sunglasses", "night", 64, 76, 96, False, 0)
    assert grouped(tokenizer, tagged(scene)) == {1: ["owl"], 2: ["sunglasses"], PLACE: ["night"]}
    assert grouped(tokenizer, tagged(scene, place=False)) == {1: ["owl"], 2: ["sunglasses"]}
    assert PLACE not in grouped(tokenizer, tagged(Scene("cat", None, None, "white", 64, 76, 96, False, 0, pen=45)))


def test_groups_tell_the_things_of_a_world_apart_in_any_order(tokenizer):
    things = (Thing("apple", "red", "crown"), Thing("pear"), Thing("cup", None, "top hat"))
    world = World(things, "table", 3.0, ((255, 255, 255), (255, 255, 255)), 0)
    text = tagged_world(world, [2, 0])
    assert "".join(word.rsplit(":", 1)[0] + " " for word in text.split()) == (
        "a cup wearing a top hat and a red apple wearing a crown on a wooden table "
    )
    assert grouped(tokenizer, text) == {
        1: ["red", "apple"],
        2: ["crown"],
        5: ["cup"],
        6: ["top", "hat"],
        PLACE: ["wooden", "table"],
    }
    assert tagged_world(world, [0, 1, 2], place=False).count(",:0") == 1


def test_no_caption_is_no_words(tokenizer):
    ids, groups = Captions(tokenizer)("")
    assert ids == tokenizer("", padding="max_length").input_ids and not any(groups)


# --- attention --------------------------------------------------------------------------------------------------------


def test_attention_in_the_open_gives_what_diffusers_gives(unet):
    from diffusers.models.attention_processor import AttnProcessor2_0

    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 4, 32, 32, generator=generator)
    text = torch.randn(2, MAX_TOKENS, denoiser.TEXT_WIDTH, generator=generator)
    t = torch.tensor([10, 900])
    with torch.inference_mode():
        unet.set_attn_processor(AttnProcessor2_0())
        expected = unet(z, t, text, return_dict=False)[0]
        recorders = record_cross_attention(unet)
        found = unet(z, t, text, return_dict=False)[0]
        unet.set_attn_processor(AttnProcessor2_0())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    sides = set()
    for recorder in recorders:
        assert recorder.probabilities is not None
        assert recorder.probabilities.shape[::2] == (2, MAX_TOKENS) and (recorder.probabilities >= 0).all()
        torch.testing.assert_close(recorder.probabilities.sum(-1), torch.ones(2, recorder.probabilities.shape[1]))
        sides.add(recorder.probabilities.shape[1])
    assert sides == {8 * 8, 16 * 16}  # where the model reads its text, none at 32 x 32


def shares(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Shares of a thing, what it wears and the place [3, 3, 4, 4], groups [3, 8]: all named, nothing worn named, none
    named."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(3, 3, 4, 4, generator=generator).softmax(1)
    groups = torch.tensor([[0, 0, 1, 1, 2, 0, 3, 0], [0, 1, 0, 3, 3, 0, 0, 0], [0] * 8])
    return masks, groups


def test_the_attention_that_is_asked_for_is_a_distribution_over_the_words_that_name_the_pixel():
    masks, groups = shares()
    target = attention_target(masks, groups)
    assert target.shape == (3, 16, 8) and (target >= 0).all()
    torch.testing.assert_close(target.sum(-1), torch.ones(3, 16))
    subject, accessory, place = masks.unbind(1)
    for group, share in ((1, subject), (2, accessory), (3, place)):
        for b in range(3):
            named = groups[b] == group
            if named.any():
                torch.testing.assert_close(target[b][:, named].sum(-1), share[b].flatten())
                assert (target[b][:, named].std(-1, correction=0) < 1e-6).all()  # evenly over its words
    torch.testing.assert_close(target[1, :, 0], accessory[1].flatten())  # nobody names it: the start token's
    torch.testing.assert_close(target[2, :, 0], torch.ones(16))
    assert target[0][:, [0, 1, 5, 7]].abs().max() < 1e-6


def test_the_attention_loss_is_least_at_the_attention_that_is_asked_for():
    generator = torch.Generator().manual_seed(3)
    masks = torch.rand(3, 3, GRID, GRID, generator=generator) / 3
    groups = shares()[1]
    fine, coarse = RecordedCrossAttention(), RecordedCrossAttention()

    def loss(mix: float) -> float:
        for recorder, k in ((fine, 1), (coarse, 2)):
            target = attention_target(torch.nn.functional.avg_pool2d(masks, k), groups)
            recorder.probabilities = (1 - mix) * target + mix / 8
        return float(attention_loss([fine, coarse], masks, groups))

    assert loss(0.0) < loss(0.1) < loss(0.5) < loss(1.0)


# --- batches ----------------------------------------------------------------------------------------------------------


def test_bare_scenes_are_shown_under_the_caption_of_the_dressed_ones(cache: Cache, tokenizer):
    batches = Batches(cache, Captions(tokenizer), 0.5, np.random.default_rng(0), bare_share=0.5)
    z, ids, groups, masks, bare = batches(64)
    assert z.shape == (64, 4, 32, 32) and ids.shape == groups.shape == (64, MAX_TOKENS)
    assert masks.shape == (64, PLACE, GRID, GRID) and masks.min() >= 0 and masks.max() <= 1
    assert 0 < bare.sum() < 64
    dressed = torch.from_numpy(cache.latents.astype(np.float32)) * 0.5
    undressed = torch.from_numpy(cache.bare.astype(np.float32)) * 0.5
    for b in range(64):
        rows = (undressed if bare[b] else dressed).eq(z[b]).flatten(1).all(1)
        assert rows.sum() == 1
        worn = ":2" in cache.captions[int(rows.nonzero())]
        if bare[b]:
            assert worn and (groups[b] == 2).any()
        assert worn or not (groups[b] == 2).any()


def test_without_a_bare_share_no_scene_is_bare(cache: Cache, tokenizer):
    *_, bare = Batches(cache, Captions(tokenizer), 1.0, np.random.default_rng(0), bare_share=0.0)(32)
    assert not bare.any()


def test_a_bare_scene_teaches_attention_only(cache: Cache, tokenizer, unet):
    both = torch.nn.ModuleDict({"unet": unet, "text_encoder": denoiser.build_text_encoder(tokenizer)})
    recorders = record_cross_attention(unet)
    batch = list(Batches(cache, Captions(tokenizer), 0.5, np.random.default_rng(0), bare_share=1.0)(4))
    noise = torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    noisy = denoiser.build_scheduler().alphas_cumprod
    t = torch.tensor([50, 300, 600, 950])
    with torch.inference_mode():
        batch[-1] = torch.ones(4, dtype=torch.bool)
        denoising, attention = denoiser.losses(unet, both["text_encoder"], recorders, noisy, tuple(batch), t, noise)
        assert denoising == 0 and attention > 0
        batch[-1] = ~batch[-1]
        denoising, again = denoiser.losses(unet, both["text_encoder"], recorders, noisy, tuple(batch), t, noise)
        assert denoising > 0 and again == attention


def test_one_time_comes_from_each_slice():
    for count in (1, 7, 12):
        t = stratified_t(count, torch.Generator().manual_seed(count))
        assert sorted((t * count // 1000).tolist()) == list(range(count))
        assert t.min() >= 0 and t.max() <= 999


def test_the_noise_ends_in_pure_noise_and_v_is_predicted():
    scheduler = denoiser.build_scheduler()
    assert scheduler.config.prediction_type == "v_prediction"
    assert (scheduler.alphas_cumprod.diff() < 0).all()
    assert scheduler.alphas_cumprod[0] > 0.999 and scheduler.alphas_cumprod[-1] < 1e-4


# --- training ---------------------------------------------------------------------------------------------------------


class Steps(Progress):
    """A clock that counts steps for minutes: how many steps a run makes no longer hangs on the machine."""

    count = 0

    def minutes(self) -> float:
        return float(self.count)

    def __call__(self, step: int, images: int, **losses: Tensor) -> bool:
        self.count += 1
        assert all(value.isfinite() for value in losses.values())
        return super().__call__(step, images, **losses)


@pytest.fixture
def folders(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Path:
    """vae/ and cache/ as the earlier stages write them; steps are counted and one sample is drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        build_autoencoder().save_pretrained(tmp_path / "vae")
    (tmp_path / "cache").mkdir()
    np.savez(tmp_path / "cache" / "shard-0.npz", **vars(cache))
    monkeypatch.setattr(denoiser, "Progress", Steps)
    monkeypatch.setattr(denoiser, "GRID_PROMPTS", ("a cat on grass",))
    return tmp_path


def command(monkeypatch: pytest.MonkeyPatch, main, **options: object) -> None:
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    monkeypatch.setattr(sys, "argv", ["training", *words])
    with torch.random.fork_rng():
        main()


def test_what_is_cached_comes_back(folders: Path, cache: Cache):
    again = load(folders / "cache")
    assert len(again) == 8
    assert all(np.array_equal(getattr(again, name), getattr(cache, name)) for name in COLUMNS)
    with pytest.raises(FileNotFoundError, match=r"run training\.cache first"):
        load(folders / "vae")


def test_a_training_repeats_itself_goes_on_and_becomes_a_model(folders: Path, monkeypatch: pytest.MonkeyPatch):
    """Three steps twice from one seed give the same weights; a further one goes on; the export edits."""
    inputs = {"cache": folders / "cache", "vae": folders / "vae", "batch": 2, "grid_minutes": 100}

    def train(out: str, steps: int) -> dict:
        command(monkeypatch, denoiser.main, **inputs, out=folders / out, minutes=steps)
        return load_checkpoint(folders / out / "denoiser.pt")

    first, second = train("a", STEPS), train("b", STEPS)
    assert first["ema"]["step"] == STEPS and first["scale"] == second["scale"]
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    assert (folders / "a" / f"samples-{STEPS:06d}.png").exists()

    third = train("a", 1)
    assert third["ema"]["step"] == STEPS + 1 and third["scale"] == first["scale"]
    changed = [name for name, value in first["model"].items() if not torch.equal(value, third["model"][name])]
    assert any(name.startswith("unet.") for name in changed)
    assert any(name.startswith("text_encoder.") for name in changed)

    out = folders / "model"
    out.mkdir()
    (out / "README.md").write_text("the card")
    command(monkeypatch, export.main, denoiser=folders / "a", vae=folders / "vae", out=out)
    assert (out / "README.md").read_text() == "the card"
    weights = list(out.rglob("*.safetensors"))
    assert len(weights) == 3 and not [*out.rglob("*.bin"), *out.rglob("*.pt")]
    assert sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) < 40e6

    from sdsedit.prior import load_prior

    prior = load_prior(str(out))
    assert (prior.native, prior.factor, prior.channels, prior.max_tokens) == (128, 4, 4, MAX_TOKENS)
    assert prior.multiple == 16 and prior.schedule.prediction == "v_prediction"
    assert prior.vae.config["scaling_factor"] == pytest.approx(first["scale"])
    for name, value in prior.unet.state_dict().items():  # the averaged weights, in half precision
        averaged = third["ema"]["shadow"].get(f"unet.{name}")
        assert averaged is None or torch.equal(value, averaged.half().float()), name


def test_the_export_is_a_plain_diffusers_pipeline():
    """Of the model that ships, where it is there."""
    folder = Path(__file__).resolve().parents[2] / "assets" / "builtin"
    if not (folder / "model_index.json").exists():
        pytest.skip("assets/builtin has no model yet")
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    assert pipe.unet.config.sample_size * 4 == 128
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 40e6
