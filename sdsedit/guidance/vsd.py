"""VSD: variational score distillation with a LoRA (ProlificDreamer, arXiv:2305.16213)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sdsedit.errors import InputRefused
from sdsedit.guidance.base import State, Step, Update, descend, predict, through_network
from sdsedit.prior.base import Prior, cfg


@dataclass(frozen=True)
class VSD:
    """g = w (e_hat(z_t, y) - e_lora(z_t, y)),  w = s^2; forward batch 3, then one of batch 1 with a backward pass:

        e_lora's additions <- Adam on |e_lora(z_t', y) - eps'|^2        (t', eps') drawn anew, z as it is

    e_lora is the prior with low-rank additions to its attention, which learn what the pictures are like that z gives;
    in SDS its place is taken by eps. As long as they have learned nothing it is the prior itself, and g is CSD's with
    weight scale - 1. It pulls towards the prompt and knows no source.

    Deviations: one picture, so no camera is told to e_lora; eps-prediction; plain gradient descent on z instead of
    Adam. The additions live beside the network, in the run's state: its own weights are never touched.
    """

    steps: int = 300
    step_size: float = 0.1
    scale: float = 7.5  # CFG
    rank: int = 4
    rate: float = 1e-3  # of Adam
    t_min: float = 0.02
    t_max: float = 0.98
    localizes: ClassVar[bool] = False

    def __call__(self, prior: Prior, step: Step, state: State | None = None) -> Update:
        state = state or State()
        with through_network(step) as own:
            lora = state.learned or LoRA(self.rank, self.rate)
            draw = own.draw()
            z_t = prior.schedule.add_noise(own.z, draw.eps, draw.t)
            rows = own.z.shape[0]
            prompts = own.prompts
            with torch.no_grad():
                (e_0, e_y, e_lora), _ = predict(
                    prior,
                    draw.t,
                    (z_t, prompts.empty),
                    (z_t, prompts.target),
                    (z_t, prompts.target),
                    probe=lora.on(slice(2 * rows, 3 * rows)),
                )
            fresh = own.draw()
            noised = prior.schedule.add_noise(own.z, fresh.eps, fresh.t)
            (e,), _ = predict(prior, fresh.t, (noised, prompts.target), probe=lora.on(slice(rows)))
            error = (e - fresh.eps).square()
            lora.learn(error.sum())  # Adam knows no scale, and a mean's gradient would vanish in half precision
        _, sigma = prior.schedule.alpha_sigma(draw.t)
        gradient = sigma**2 * (cfg(e_0, e_y, self.scale) - e_lora)
        update = descend(step, gradient, self.step_size, draw.t)
        update.stats["lora_error"] = error.detach().mean()
        return replace(update, state=replace(state, learned=lora))


class LoRA:
    """Low-rank additions to the attention projections of a network, arXiv:2106.09685: W x + U V x, with U = 0 at first.

    They are made at the first forward pass, always the same ones, and stay outside the network: hooks add them to the
    rows that `on` names while that pass lasts.
    """

    def __init__(self, rank: int, rate: float) -> None:
        self.rank, self.rate = rank, rate
        self.parameters: dict[str, tuple[Tensor, Tensor]] = {}  # layer -> V [rank, in], U [out, rank]
        self._adam: torch.optim.Adam | None = None

    def on(self, rows: slice) -> _Added:
        return _Added(self, rows)

    def learn(self, loss: Tensor) -> None:
        """One step of Adam down `loss`."""
        if self._adam is None:
            every = [tensor for pair in self.parameters.values() for tensor in pair]
            self._adam = torch.optim.Adam(every, self.rate)
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()

    def layers(self, network: nn.Module) -> dict[str, nn.Linear]:
        """The projections of its attention layers, whose additions exist from now on. InputRefused: it has none."""
        endings = ("to_q", "to_k", "to_v", "to_out.0")
        found = {
            name: layer
            for name, layer in network.named_modules()
            if isinstance(layer, nn.Linear) and name.endswith(endings)
        }
        if not found:
            raise InputRefused("This model has no attention that VSD could add to: use CSD.")
        generator = torch.Generator().manual_seed(0)
        for name, layer in found.items():
            if name not in self.parameters:
                down = torch.randn(self.rank, layer.in_features, generator=generator) / self.rank
                up = torch.zeros(layer.out_features, self.rank)
                device = layer.weight.device
                self.parameters[name] = (down.to(device).requires_grad_(), up.to(device).requires_grad_())
        return found


class _Added:
    """A Probe that records nothing: while attached, the additions are on for some rows of the batch."""

    def __init__(self, lora: LoRA, rows: slice) -> None:
        self.lora, self.rows = lora, rows

    @contextmanager
    def attach(self, network: Any, batch: int, latent_size: tuple[int, int]) -> Iterator[None]:
        start, stop, _ = self.rows.indices(batch)

        def added(name: str) -> Callable[..., Tensor]:
            down, up = self.lora.parameters[name]

            def hook(_: Any, given: Any, output: Any) -> Tensor:
                more = (given[0][start:stop].to(down.dtype) @ down.T @ up.T).to(output.dtype)
                return torch.cat([output[:start], output[start:stop] + more, output[stop:]])

            return hook

        with ExitStack() as hooks:
            for name, layer in self.lora.layers(network).items():
                hooks.enter_context(layer.register_forward_hook(added(name)))
            yield

    def collect(self) -> None:
        return None
