"""prior.base: batches of text keep their rows together, guidance is uncond + scale (cond - uncond)."""

from __future__ import annotations

import pytest
import torch

from sdsedit.prior import Text, cfg


def text(*prompts: str, pooled: bool = True) -> Text:
    rows = torch.tensor([float(ord(prompt)) for prompt in prompts])
    embeds = rows.view(-1, 1, 1).expand(-1, 3, 2).clone()
    return Text(prompts, embeds, rows.view(-1, 1).clone() if pooled else None)


def rows_agree(t: Text) -> bool:
    """Every row's tensors belong to its prompt."""
    values = torch.tensor([float(ord(prompt)) for prompt in t.prompts])
    return torch.equal(t.embeds[:, 0, 0], values) and (t.pooled is None or torch.equal(t.pooled[:, 0], values))


def test_rows_are_always_a_batch():
    t = text("a", "b", "c")
    for part, prompts in [(t[1], ("b",)), (t[-1], ("c",)), (t[1:], ("b", "c")), (t[::2], ("a", "c"))]:
        assert part.prompts == prompts and part.embeds.shape == (len(prompts), 3, 2) and rows_agree(part)
        assert len(part) == len(prompts)
    with pytest.raises(IndexError):
        t[3]


def test_repeat_tiles_the_whole_batch_and_cat_appends():
    assert text("a", "b").repeat(2).prompts == ("a", "b", "a", "b") and rows_agree(text("a", "b").repeat(2))
    joined = Text.cat(text("a", pooled=False), text("b", "c", pooled=False))
    assert joined.prompts == ("a", "b", "c") and joined.pooled is None and rows_agree(joined)
    assert rows_agree(Text.cat(text("a"), text("b")))


def test_cat_undoes_slicing():
    t = text("a", "b", "c")
    again = Text.cat(t[0], t[1:])
    assert again.prompts == t.prompts and torch.equal(again.embeds, t.embeds)


def test_texts_of_different_models_do_not_mix():
    with pytest.raises(ValueError, match="same model"):
        Text.cat(text("a"), text("b", pooled=False))
    with pytest.raises(ValueError, match="one or more"):
        Text.cat()


def test_guidance_form():
    uncond, cond = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0])
    assert torch.equal(cfg(uncond, cond, 0), uncond)
    assert torch.equal(cfg(uncond, cond, 1), cond)
    assert torch.equal(cfg(uncond, cond, 7.5), torch.tensor([8.5, -13.0]))
    assert torch.equal(cfg(cond, cond, 100), cond)
