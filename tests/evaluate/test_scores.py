"""Scores of results whose numbers are known, with a CLIP that is small and real; nothing is measured twice."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from sdsedit.errors import InputRefused
from sdsedit.evaluate.datasets import Case, read_dataset
from sdsedit.evaluate.scores import Clip, load_lpips, measured, score
from sdsedit.metrics import directional_similarity, similarity
from tests.evaluate.folders import clip, magicbrush, picture, pie


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    return Clip(str(clip(tmp_path_factory.mktemp("clip"))), "cpu")


def shifted(source: Path, path: Path, by: int) -> Path:
    """The same picture with every value moved towards the middle by `by` of 255."""
    pixels = np.array(Image.open(source).convert("RGB")).astype(int)
    Image.fromarray(np.where(pixels > 127, pixels - by, pixels + by).astype(np.uint8)).save(path)
    return path


def test_a_result_that_is_the_datasets_own(tmp_path, tiny_clip):
    case = read_dataset(magicbrush(tmp_path / "test"), "magicbrush")[0]
    assert case.truth is not None
    found = score(case, case.truth, tiny_clip, "not installed")
    assert found["l1"] == 0 and found["clip_i"] == pytest.approx(1, abs=1e-6)
    assert found["lpips"] is None and found["psnr_outside"] is None


def test_a_result_that_did_nothing(tmp_path, tiny_clip):
    case = read_dataset(magicbrush(tmp_path / "test"), "magicbrush")[0]
    found = score(case, case.image, tiny_clip, "not installed")
    assert found["clip_r"] == pytest.approx(1, abs=1e-6) and found["direction"] == pytest.approx(0, abs=1e-6)


def test_every_number_is_what_its_name_says(tmp_path, tiny_clip):
    case = read_dataset(magicbrush(tmp_path / "test"), "magicbrush")[0]
    assert case.truth is not None
    result = shifted(case.truth, tmp_path / "result.png", 51)
    found = score(case, result, tiny_clip, "not installed")
    assert found["l1"] == pytest.approx(0.2, abs=1e-6)
    before, after, truth = (
        tiny_clip.pictures([Image.open(p).convert("RGB")]) for p in (case.image, result, case.truth)
    )
    source, target, caption = (tiny_clip.texts([each]) for each in (case.source, case.target, case.caption))
    assert found["clip_t"] == pytest.approx(similarity(after, caption).item(), abs=1e-5)
    assert found["clip_i"] == pytest.approx(similarity(after, truth).item(), abs=1e-5)
    ratio = similarity(after, target) / similarity(before, target)
    assert found["clip_r"] == pytest.approx(ratio.item(), rel=1e-4)
    assert found["direction"] == pytest.approx(directional_similarity(before, after, source, target).item(), abs=1e-4)


def test_a_result_of_another_size_is_compared_at_the_datasets(tmp_path):
    case = read_dataset(magicbrush(tmp_path / "test"), "magicbrush")[0]
    assert case.truth is not None
    Image.new("RGB", (32, 32), (51, 51, 51)).save(case.truth)
    Image.new("RGB", (64, 64), (102, 102, 102)).save(tmp_path / "large.png")
    assert score(case, tmp_path / "large.png", None, "")["l1"] == pytest.approx(0.2, abs=1e-6)


def test_pie_bench_counts_what_lies_outside_its_mask(tmp_path, tiny_clip):
    first, second = read_dataset(pie(tmp_path / "pie"), "pie")
    pixels = np.array(Image.open(first.image).convert("RGB"))
    pixels[100:102, 100:150] = 255 - pixels[100:102, 100:150]
    Image.fromarray(pixels).save(tmp_path / "inside.png")
    found = score(first, tmp_path / "inside.png", tiny_clip, "")
    assert found["l1"] == 0 and found["psnr_outside"] == 99
    found = score(first, shifted(first.image, tmp_path / "all.png", 51), tiny_clip, "")
    assert found["l1"] == pytest.approx(0.2, abs=1e-6) and found["psnr_outside"] == pytest.approx(13.979, abs=1e-3)
    assert score(first, first.image, tiny_clip, "")["clip_i"] == pytest.approx(1, abs=1e-6)
    everywhere = score(second, second.image, tiny_clip, "")
    assert everywhere["l1"] is None and everywhere["psnr_outside"] is None and everywhere["clip_r"] is not None
    small = replace(first, image=picture(tmp_path / "small.png", 0, 64))
    with pytest.raises(InputRefused, match="not 512 x 512"):
        score(small, tmp_path / "inside.png", None, "")


def test_lpips_is_called_on_what_counts(tmp_path):
    first, _ = read_dataset(pie(tmp_path / "pie"), "pie")
    seen = []

    def distance(a, b):
        seen.append((a - b).abs().amax())
        return torch.tensor([0.25])

    pixels = np.array(Image.open(first.image).convert("RGB"))
    pixels[100:102, 100:150] = 255 - pixels[100:102, 100:150]
    Image.fromarray(pixels).save(tmp_path / "inside.png")
    assert score(first, tmp_path / "inside.png", None, distance)["lpips"] == 0.25 and seen[0] == 0


@pytest.mark.skipif(find_spec("lpips") is not None, reason="says so only without lpips")
def test_without_lpips_it_says_so():
    assert load_lpips("cpu") == "not installed"


@pytest.mark.skipif(find_spec("lpips") is None, reason="LPIPS needs pip install 'sdsedit[metrics]'")
def test_with_lpips_equal_pictures_are_0():
    distance = load_lpips("cpu")
    if isinstance(distance, str):
        pytest.skip(f"LPIPS: {distance}")
    a = torch.rand(1, 3, 64, 64)
    assert distance(a, a).item() == 0 and distance(a, 1 - a).item() > 0.05


def test_clip_prepares_pictures_as_openai_does(tiny_clip):
    """A wide picture: the shorter side becomes CLIP's, the middle is cut out, the mean is taken off."""
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, 32:64] = 255  # the middle square is white
    x = tiny_clip._prepared(Image.fromarray(pixels))
    assert x.shape == (3, 32, 32)
    white = (1 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor([0.26862954, 0.26130258, 0.27577711])
    assert torch.allclose(x[:, :, 4:-4], white.view(3, 1, 1).expand(3, 32, 24), atol=1e-5)


def test_clip_features_are_the_models_own(tiny_clip):
    model = CLIPModel.from_pretrained(tiny_clip.name).eval()
    x = torch.stack([tiny_clip._prepared(Image.new("RGB", (40, 32), (10, 200, 30)))])
    words = tiny_clip.tokenizer(["a cat", "a red hat on a dog"], return_tensors="pt", padding=True)
    with torch.no_grad():
        said = model(pixel_values=x, **words)
    ours = tiny_clip.pictures([Image.new("RGB", (40, 32), (10, 200, 30))])
    assert torch.allclose(torch.nn.functional.normalize(ours), said.image_embeds, atol=1e-5)
    texts = torch.nn.functional.normalize(tiny_clip.texts(["a cat", "a red hat on a dog"]))
    assert torch.allclose(texts, said.text_embeds, atol=1e-5)
    assert torch.allclose(tiny_clip.texts(["a cat"]), tiny_clip.texts(["a cat", "a red hat on a dog"])[:1], atol=1e-5)
    assert tiny_clip.texts(["cat " * 200]).isfinite().all()  # longer than it reads


def test_a_clip_that_is_not_here_is_never_fetched(tmp_path):
    with pytest.raises(InputRefused, match="nobody/clip is not on this machine: hf download nobody/clip"):
        Clip("nobody/clip", "cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputRefused, match="empty is not on this machine"):
        Clip(str(tmp_path / "empty"), "cpu")


def test_a_pickle_is_read_only_when_that_is_asked_for(tmp_path):
    folder = clip(tmp_path / "clip")
    model = CLIPModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputRefused, match="clip is only there as a pickle"):
        Clip(str(folder), "cpu")
    loaded = Clip(str(folder), "cpu", allow_pickle=True).model.state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in model.state_dict().items())


def test_nothing_is_measured_twice(tmp_path, tiny_clip):
    cases = read_dataset(magicbrush(tmp_path / "test"), "magicbrush")
    results = [("lusd", case, shifted(case.image, tmp_path / f"{case.id}.png", 9)) for case in cases]
    calls = []

    class Counted:
        name = tiny_clip.name

        def pictures(self, pictures):
            calls.append(1)
            return tiny_clip.pictures(pictures)

        def texts(self, texts):
            return tiny_clip.texts(texts)

    def run(clip, results=results):
        return list(measured(results, tmp_path / "scores.jsonl", clip, ""))

    first = run(Counted())
    assert len(calls) == 3 and run(Counted()) == first and len(calls) == 3
    with (tmp_path / "scores.jsonl").open("a") as lines:
        lines.write('{"method": "lusd", "ca')  # a power cut
    assert run(Counted()) == first and len(calls) == 3
    shifted(cases[1].image, results[1][2], 30)  # another result
    assert run(Counted())[1] != first[1] and len(calls) == 4
    assert run(None)[0]["clip_t"] is None and run(Counted())[0] == first[0] and len(calls) == 4  # another measure
    other = [("dds", case, path) for _, case, path in results]
    assert [row["method"] for row in run(Counted(), other)] == ["dds"] * 3 and len(calls) == 7
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines() if line.endswith("}")]
    assert all(set(line) >= {"method", "case", "of", "l1"} for line in lines)


def test_a_case_without_mask_and_truth_compares_with_its_source(tmp_path):
    path = picture(tmp_path / "a.png", 1)
    found = score(Case("a", path, "a cat", "a dog", "a dog"), path, None, "")
    assert found["l1"] == 0 and found["psnr_outside"] is None
