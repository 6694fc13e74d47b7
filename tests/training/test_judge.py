"""The judge answers in words of the world, and comes back from its file as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from training.judge import QUESTIONS, Judge, accuracy, answers, draw, draw_rough, labels, load_judge
from training.scenes import BACKGROUNDS, Scene, random_scene

SHIPPED = Path(__file__).resolve().parents[2] / "benchmarks" / "judge.safetensors"


@pytest.fixture(scope="module")
def judge() -> Judge:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = Judge().train()
        with torch.no_grad():
            judge(torch.rand(4, 3, 128, 128))  # statistics of its own for the normalisations
    return judge.eval()


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [random_scene(rng) for _ in range(30)]


def test_there_is_a_right_answer_to_every_question(scenes: list[Scene]):
    truth = labels(scenes)
    for b, scene in enumerate(scenes):
        right = answers(scene)
        assert right.keys() == QUESTIONS.keys() == truth.keys()
        assert all(QUESTIONS[name][int(truth[name][b])] == right[name] for name in QUESTIONS)
    bare = Scene("cat", None, None, "sea", 64, 76, 96, False, 0)
    assert answers(bare) == {"noun": "cat", "colour": "none", "accessory": "none", "background": "sea"}


def test_no_two_options_of_a_question_are_the_same_word():
    for options in QUESTIONS.values():
        assert len(set(options)) == len(options)
    assert QUESTIONS["background"] == list(BACKGROUNDS)


def test_it_reads_words_one_picture_at_a_time_or_many(judge: Judge):
    pictures = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    read = judge.read(pictures)
    assert len(read) == 3
    for row in read:
        assert row.keys() == QUESTIONS.keys()
        assert all(row[name] in QUESTIONS[name] for name in QUESTIONS)
    assert [judge.read(picture[None])[0] for picture in pictures] == read


def test_accuracy_is_one_for_its_own_answers_and_counts_each_wrong_one(judge: Judge):
    pictures = torch.randint(0, 256, (4, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        truth = {name: value.argmax(1) for name, value in judge.eval()(pictures.float() / 255).items()}
    assert accuracy(judge, pictures, truth) == dict.fromkeys(QUESTIONS, 1.0)
    truth["colour"] = truth["colour"].clone()
    truth["colour"][0] = (truth["colour"][0] + 1) % len(QUESTIONS["colour"])
    assert accuracy(judge, pictures, truth) == {**dict.fromkeys(QUESTIONS, 1.0), "colour": 0.75}
    judge.eval()


def test_it_comes_back_from_its_file(judge: Judge, tmp_path: Path):
    """In half precision, as training.judge writes it: every weight within half's rounding, none forgotten."""
    path = tmp_path / "judge.safetensors"
    state = {n: v.half() if v.is_floating_point() else v for n, v in judge.state_dict().items()}
    save_file({n: v.contiguous() for n, v in state.items()}, path)
    again = load_judge(path)
    assert not again.training
    for name, value in again.state_dict().items():
        assert value.dtype == judge.state_dict()[name].dtype
        torch.testing.assert_close(value, judge.state_dict()[name], rtol=1e-3, atol=1e-6)
    pictures = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        for a, b in zip(again(pictures).values(), judge(pictures).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=0.05, atol=0.02)


def test_it_is_examined_on_scenes_of_a_seed(scenes: list[Scene]):
    pictures, truth = draw(3, 7, "noto-v1")
    again, _ = draw(3, 7, "noto-v1")
    assert pictures.shape == (3, 3, 128, 128) and pictures.dtype == torch.uint8
    assert torch.equal(pictures, again)
    assert truth.keys() == QUESTIONS.keys() and all(len(value) == 3 for value in truth.values())


@pytest.mark.skipif(not SHIPPED.exists(), reason="benchmarks/judge.safetensors has not been trained yet")
def test_the_shipped_judge_reads_held_out_scenes():
    scores = accuracy(load_judge(SHIPPED), *draw(40, 99, "fluent-flat", held_out=True))
    assert min(scores.values()) >= 0.9, scores


def test_rough_drawings_are_drawings_bent_and_broken_and_always_the_same():
    pictures, truth = draw_rough(4, 7, "fluent-flat")
    again, _ = draw_rough(4, 7, "fluent-flat")
    assert pictures.shape == (4, 3, 128, 128) and pictures.dtype == torch.uint8 and torch.equal(pictures, again)
    assert (truth["colour"] == QUESTIONS["colour"].index("none")).all()
    assert (truth["background"] == QUESTIONS["background"].index("white")).all()
    assert (pictures.float().mean((1, 2, 3)) > 150).all() and (pictures.amin((1, 2, 3)) < 160).all()
