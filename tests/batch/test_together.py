"""Edits that share the network's passes come out as they do alone, but for rounding."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from sdsedit.batch.together import MAX_ROWS, Table
from sdsedit.edit import EditResult, edit
from sdsedit.errors import InputRefused
from sdsedit.prior.base import Prior
from sdsedit.prior.unet import UNetPrior
from sdsedit.request import Edit, EditConfig

TOLERANCE = 1e-4  # of a picture's 0..1: a fortieth of an 8-bit level


def loops(*configs: EditConfig, size: tuple[int, int] = (48, 64)) -> list[Callable[[Prior], EditResult]]:
    request = Edit(target="a cat wearing a crown", source="a cat")

    def of(k: int, config: EditConfig) -> Callable[[Prior], EditResult]:
        image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(k))
        return lambda prior: edit(image, prior, request, config)

    return [of(k, config) for k, config in enumerate(configs)]


def check(prior: UNetPrior, every: list[Callable[[Prior], EditResult]], tables: int | None = None) -> Table:
    table = Table(prior, tables)
    for loop, found in zip(every, table.run(every), strict=True):
        wanted = loop(prior)
        assert isinstance(found, EditResult), found
        assert (found.image - wanted.image).abs().max() <= TOLERANCE
        assert (found.heatmap - wanted.heatmap).abs().max() <= 1e-3
        assert found.words == wanted.words and found.notes == wanted.notes
    return table


def test_the_same_results_with_fewer_passes(builtin_prior: UNetPrior):
    table = check(builtin_prior, loops(*(EditConfig(steps=5, seed=seed) for seed in range(4))), tables=1)
    assert table.rows >= 4 * 5 * 2 and table.passes < table.rows / 4  # a redraw of one is a pass for it alone


def test_several_tables_on_a_cpu_give_the_same_results(builtin_prior: UNetPrior):
    threads = torch.get_num_threads()
    table = check(builtin_prior, loops(*(EditConfig(steps=4, seed=seed, refine=0.0) for seed in range(3))), tables=2)
    assert table.rows >= 3 * 4 * 2 and table.passes < table.rows / 2
    assert torch.get_num_threads() == threads
    new = []
    thread = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert new == [threads]


def test_other_methods_steps_and_sizes_may_sit_at_one_table(sdxl_prior: UNetPrior, builtin_prior: UNetPrior):
    configs = [EditConfig(method=method, steps=steps) for method, steps in (("lusd", 3), ("dds", 6), ("csd", 2))]
    check(sdxl_prior, loops(*configs))
    check(builtin_prior, [*loops(*configs[:2]), *loops(configs[2], size=(80, 40))])


def test_a_loop_that_fails_or_stops_does_not_hold_up_the_others(builtin_prior: UNetPrior):
    good = loops(EditConfig(steps=4), EditConfig(steps=4))

    def fails(prior: Prior) -> EditResult:
        with torch.no_grad():
            prior.encode(torch.rand(1, 3, 32, 32))
        raise InputRefused("It cannot be.")

    found = Table(builtin_prior).run([good[0], fails, good[1]])
    assert isinstance(found[1], InputRefused) and all(isinstance(found[k], EditResult) for k in (0, 2))


def test_a_pass_that_does_not_fit_in_memory_is_made_in_parts(builtin_prior: UNetPrior):
    class Small:
        """A device with room for few rows: this is an injected error, there is no GPU here to fill."""

        def __getattr__(self, name: str) -> Any:
            return getattr(builtin_prior, name)

        def predict(self, z_t: torch.Tensor, *rest: Any) -> Any:
            if z_t.shape[0] > 4:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return builtin_prior.predict(z_t, *rest)

    every = loops(*(EditConfig(steps=2, seed=seed) for seed in range(3)))
    found = Table(Small(), tables=1).run(every)  # pyright: ignore[reportArgumentType]
    for loop, result in zip(every, found, strict=True):
        assert isinstance(result, EditResult) and (result.image - loop(builtin_prior).image).abs().max() <= TOLERANCE


def test_no_pass_has_more_rows_than_allowed(builtin_prior: UNetPrior):
    class Watched:
        most = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(builtin_prior, name)

        def predict(self, z_t: torch.Tensor, *rest: Any) -> Any:
            Watched.most = max(Watched.most, z_t.shape[0])
            return builtin_prior.predict(z_t, *rest)

    count = MAX_ROWS // 4 + 2
    Table(Watched(), tables=1).run(loops(*[EditConfig("dds", steps=1)] * count, size=(16, 16)))  # pyright: ignore[reportArgumentType]
    assert MAX_ROWS // 2 < Watched.most <= MAX_ROWS


def test_methods_that_go_back_through_the_network_share_what_they_can(builtin_prior: UNetPrior):
    configs = [EditConfig(method=name, steps=2, size=32, refine=0.0) for name in ("ids", "cds", "vsd", "dds")]
    check(builtin_prior, loops(*configs))
    assert not any(module._forward_hooks for module in builtin_prior.unet.modules())


def test_autograd_does_not_go_through_the_autoencoder(builtin_prior: UNetPrior):
    (found,) = Table(builtin_prior).run([lambda prior: prior.encode(torch.rand(1, 3, 32, 32))])
    assert isinstance(found, ValueError) and "autograd" in str(found)
