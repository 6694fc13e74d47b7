"""What the trainings share: the average of weights and checkpoints."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from training.run import EMA, load_checkpoint, save_checkpoint


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(3, 2)


def values(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@torch.no_grad()
def move(module: nn.Module, by: float) -> None:
    for p in module.parameters():
        p.add_(by)


def test_the_average_of_weights_that_stay_is_those_weights():
    module = network()
    ema, before = EMA(module), values(module)
    for _ in range(5):
        ema.update()
    assert ema.step == 5
    for name, p in module.named_parameters():
        torch.testing.assert_close(ema.shadow[name], p.detach())
    assert equal(values(module), before)


def test_the_average_follows_at_the_rate_that_rises_to_decay():
    module = network()
    ema, first = EMA(module, decay=0.5), values(module)
    move(module, 1.0)
    ema.update()  # (1 + 1) / (10 + 1), less than 0.5
    for name, start in zip(ema.shadow, first, strict=True):
        torch.testing.assert_close(ema.shadow[name], start + 9 / 11)
    for _ in range(200):
        ema.update()
    for name, p in module.named_parameters():
        torch.testing.assert_close(ema.shadow[name], p.detach())


def test_a_swap_shows_the_average_and_a_second_one_undoes_it():
    module = network()
    ema, averaged = EMA(module), values(module)
    move(module, 1.0)
    live = values(module)
    ema.swap()
    assert equal(values(module), averaged)
    ema.swap()
    assert equal(values(module), live)
    assert equal(list(ema.shadow.values()), averaged)


def test_a_checkpoint_comes_back_as_it_was_and_leaves_nothing_beside_it(tmp_path: Path):
    module = network(1)
    ema = EMA(module)
    move(module, 0.5)
    ema.update()
    path = tmp_path / "network.pt"
    save_checkpoint(path, {"model": module.state_dict(), "ema": ema.state_dict(), "scale": 0.7})
    assert [file.name for file in tmp_path.iterdir()] == ["network.pt"]

    state = load_checkpoint(path)
    other = network(2)
    other.load_state_dict(state["model"])
    average = EMA(other)
    average.load_state_dict(state["ema"])
    assert state["scale"] == 0.7 and average.step == 1
    assert equal(values(other), values(module))
    assert equal(list(average.shadow.values()), list(ema.shadow.values()))


def test_a_checkpoint_with_code_in_it_is_not_read(tmp_path: Path):
    path = tmp_path / "network.pt"
    torch.save({"model": Path("x")}, path)
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(path)
