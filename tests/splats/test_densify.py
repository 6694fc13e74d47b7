"""Densification: children inherit, moments of the new start at 0, and nothing else changes."""

from __future__ import annotations

import math

import pytest
import torch

from sdsedit.splats.densify import (
    SHRINK,
    Rows,
    cat,
    clone,
    densify,
    prune,
    reset_opacity,
    rotations,
    screen_push,
    split,
)


def some(count: int = 6, seed: int = 0) -> Rows:
    g = torch.Generator().manual_seed(seed)
    parameters = {
        "means": torch.randn(count, 3, generator=g),
        "quats": torch.randn(count, 4, generator=g),
        "log_scales": torch.randn(count, 3, generator=g) - 3,
        "logits": torch.randn(count, generator=g),
        "sh": torch.randn(count, 4, 3, generator=g),
    }
    moments = {
        name: (torch.randn(p.shape, generator=g), torch.rand(p.shape, generator=g)) for name, p in parameters.items()
    }
    return Rows(parameters, moments, {"part": torch.arange(count), "weight": torch.rand(count, 2, generator=g)})


def picked(rows: Rows, *which: int) -> torch.Tensor:
    return torch.zeros(len(rows), dtype=torch.bool).index_fill_(0, torch.tensor(which, dtype=torch.long), True)


def equal(a: Rows, b: Rows) -> bool:
    return (
        all(torch.equal(a.parameters[n], b.parameters[n]) for n in a.parameters)
        and all(torch.equal(x, y) for n in a.moments for x, y in zip(a.moments[n], b.moments[n], strict=True))
        and all(torch.equal(a.labels[n], b.labels[n]) for n in a.labels)
    )


def test_nothing_chosen_changes_nothing():
    rows = some()
    g = torch.Generator().manual_seed(1)
    assert equal(clone(rows, picked(rows)), rows)
    assert equal(split(rows, picked(rows), g), rows)
    assert equal(prune(rows, picked(rows)), rows)
    assert equal(densify(rows, torch.zeros(6), 0.1, 0.1, g), rows)


def test_pruning_undoes_cloning_but_for_the_opacity_that_was_shared():
    rows = some()
    grown = clone(rows, picked(rows, 1, 4))
    assert grown.labels["part"].tolist() == [0, 1, 2, 3, 4, 5, 1, 4]
    assert torch.equal(grown.parameters["means"][6:], rows.parameters["means"][[1, 4]])
    assert all((m[6:] == 0).all() and (v[6:] == 0).all() for m, v in grown.moments.values())
    back = prune(grown, picked(grown, 6, 7))
    assert torch.equal(back.parameters["sh"], rows.parameters["sh"])
    assert torch.equal(back.moments["sh"][1], rows.moments["sh"][1])


def test_a_clone_and_its_original_together_hide_what_the_one_hid():
    rows = some()
    rows = rows.replaced(logits=torch.tensor([-9.0, -3, 0, 2, 6, 11]))
    grown = clone(rows, picked(rows, *range(6)))
    through = torch.sigmoid(-grown.parameters["logits"].double())
    assert torch.allclose(through[:6] * through[6:], torch.sigmoid(-rows.parameters["logits"].double()), rtol=1e-5)


def test_a_split_row_gives_way_to_two_of_its_own_shape():
    rows = some(2)
    many = rows[torch.tensor([1]).repeat(4000)]
    halves = split(many, torch.ones(4000, dtype=torch.bool), torch.Generator().manual_seed(0))
    assert len(halves) == 8000
    assert set(halves.labels["part"].tolist()) == {1}
    assert all((m == 0).all() for m, _ in halves.moments.values())
    assert torch.allclose(halves.parameters["log_scales"], many.parameters["log_scales"][:1] - math.log(SHRINK))
    R, s = rotations(rows.parameters["quats"][1]), rows.parameters["log_scales"][1].exp()
    covariance = R @ torch.diag(s * s) @ R.T
    off = halves.parameters["means"] - rows.parameters["means"][1]
    assert torch.allclose(off.T @ off / 8000, covariance, atol=0.06 * float(s.max()) ** 2)


def test_densify_clones_the_small_and_splits_the_large():
    rows = some(4)
    rows = rows.replaced(log_scales=torch.tensor([[0.01], [0.01], [0.5], [0.5]]).expand(4, 3).log())
    new = densify(rows, torch.tensor([1.0, 0.0, 1.0, 0.0]), 0.5, 0.1, torch.Generator().manual_seed(0))
    assert new.labels["part"].tolist() == [0, 1, 3, 0, 2, 2]
    assert torch.equal(new.labels["weight"][3], rows.labels["weight"][0])


def test_densify_stops_at_the_most_and_takes_the_most_pushed():
    rows = some(5)
    push = torch.tensor([1.0, 5.0, 2.0, 4.0, 3.0])
    new = densify(rows, push, 0.5, 100.0, torch.Generator(), most=7)
    assert new.labels["part"].tolist() == [0, 1, 2, 3, 4, 1, 3]
    assert len(densify(rows, push, 0.5, 100.0, torch.Generator(), most=3)) == 5


def test_the_same_generator_gives_the_same_rows():
    rows = some()
    a, b = (densify(rows, torch.ones(6), 0.5, 0.03, torch.Generator().manual_seed(7)) for _ in range(2))
    assert equal(a, b)


def test_opacity_is_reset_and_its_moments_forgotten():
    rows = some()
    low = reset_opacity(rows, 0.3)
    assert torch.sigmoid(low.parameters["logits"]).max() <= 0.3 + 1e-6
    kept = rows.parameters["logits"] < math.log(0.3 / 0.7)
    assert torch.equal(low.parameters["logits"][kept], rows.parameters["logits"][kept])
    assert (low.moments["logits"][0] == 0).all() and torch.equal(low.moments["sh"][0], rows.moments["sh"][0])


def test_rows_that_differ_in_kind_do_not_join():
    rows = some()
    with pytest.raises(ValueError, match="same labels"):
        cat(rows, Rows(rows.parameters, rows.moments, {}))


def test_screen_push_is_the_gradient_of_the_place_on_the_screen():
    g = torch.Generator().manual_seed(0)
    means = torch.randn(5, 3, generator=g, dtype=torch.float64, requires_grad=True)
    viewmat = torch.eye(4, dtype=torch.float64)
    viewmat[:3, :3] = rotations(torch.randn(4, generator=g, dtype=torch.float64))
    viewmat[2, 3] = 6
    K = torch.tensor([[80.0, 0, 32], [0, 90, 24], [0, 0, 1]], dtype=torch.float64)
    seen = means @ viewmat[:3, :3].T + viewmat[:3, 3]
    flat = seen[:, :2] / seen[:, 2:] * K.diagonal()[:2] / torch.tensor([32.0, 24.0])
    flat.retain_grad()
    loss = (flat * torch.randn(5, 2, generator=g, dtype=torch.float64)).sum()
    loss.backward()
    assert means.grad is not None and flat.grad is not None
    push = screen_push(means.grad, means, viewmat, K, 64, 48)
    assert torch.allclose(push, flat.grad.norm(dim=1))
