"""LUSD: localized update score distillation (arXiv:2503.11054, ICCV 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from sdsedit.attention.localize import average, localize
from sdsedit.attention.probe import AttentionMaps, AttentionProbe, SeveralProbes
from sdsedit.guidance.base import Prompts, State, Step, Update, measures, predict
from sdsedit.prior.base import Prior
from sdsedit.schedule import Draw


@dataclass(frozen=True)
class LUSD:
    """Step i of n, forward batch 2, no CFG, one noisy latent:

        e    = e(z_t, y_tgt) - e(z_t, y_src)           redraw (t, eps) while std(e) < tau tau_decay^k, k redraws so far
        M    = minmax(upsample(A c))                   c: cross-attention of the edit's words, A: self-attention
        Mbar = 0.9 Mbar + 0.1 M                        the first M starts it
        M_i  = beta Mbar + (1 - beta)                  beta from 0 to 1 over the run: narrowing
        d    = (1 - pull) M_i e + pull (z - z_src)     the mask multiplies the first term only
        z   <- z - step_size delta d / std(d)          delta = low + (high - low) (1 - sigmoid(u)), u from -5 to 5

    std is over all elements, so a step's rms is about step_size * delta whatever the prompts, and the same at every
    resolution.

    Deviations from the authors' code, and why:
    - the mask is the current step's, theirs is the previous accepted step's;
    - their 2000 / (h w) at 64 x 64 is the step size 0.488 per element;
    - `retries` caps the redraws: where every draw is under its threshold (equal prompts) the step does nothing; theirs
      goes on until tau underflows;
    - std(d) is taken as at least `std_floor` std(e): as the mask narrows, std(d) shrinks and the step inside the mask
      would grow without bound, up to a division by zero;
    - `normalise="mask"` takes std(d) over the mask, sqrt(sum M d^2 / (C sum M)), so that a step's rms *inside the mask*
      is step_size * delta however small the mask is; the authors' std over the whole picture ("picture") moves a small
      mask's inside further, by 1 / sqrt(its area). docs/experiments.md has the numbers;
    - where new words replace others, M is the larger of the new words' map and, on the source branch, the replaced
      words': a fox that is smaller than the dog must not keep the dog's ears;
    - std divides by n, not n - 1 (3e-5 apart at 64 x 64), which makes it the same for a tiled latent.

    A person's mask (step.mask) takes M_i's place from the first step, with no narrowing. No words and no mask: M_i = 1.
    Where words were only removed, prompts.mask_from is "source" and the maps are the source branch's.

    The filter reads one number from the device for each draw; there is no other host synchronisation. A non-finite std
    is accepted and gives a non-finite step, for the loop to stop at; the state stays as it was.
    """

    steps: int = 300
    step_size: float = 0.488
    tau: float = 0.01  # threshold on std(e)
    tau_decay: float = 0.99
    retries: int = 20  # redraws a step
    decay: float = 0.9  # of the moving average
    pull: float = 0.02  # lambda: weight of z - z_src
    delta_high: float = 0.15
    delta_low: float = 0.01
    std_floor: float = 0.25  # share of std(e)
    normalise: Literal["picture", "mask"] = "picture"
    t_min: float = 0.05
    t_max: float = 0.95
    localizes: ClassVar[bool] = True

    def __call__(self, prior: Prior, step: Step, state: State | None = None) -> Update:
        state = state or State()
        draw, e, std, maps, rejected = self._filtered(prior, step)
        stats = measures(step, e, draw.t)
        stats["rejected"] = torch.full((), float(rejected), device=e.device)
        accepted = rejected <= self.retries

        if maps is not None and accepted and math.isfinite(std):
            current = torch.cat([localize(each, (e.shape[-2], e.shape[-1])) for each in maps]).amax(0, keepdim=True)
            state = replace(state, mask=average(state.mask, current, self.decay), map=current)
        mask = self._mask(step, state, e)
        stats["mask_area"] = mask.mean()
        if not accepted:
            return Update(torch.zeros_like(e), state, stats)

        d = (1 - self.pull) * mask * e + self.pull * (step.z - step.z_src)
        floor = max(self.std_floor * std, torch.finfo(d.dtype).tiny)
        spread = d.std(correction=0) if self.normalise == "picture" else _rms_inside(d, mask)
        d = d / spread.clamp(min=floor) * self._delta(step)
        return Update(self.step_size * d, state, stats)

    def _filtered(self, prior: Prior, step: Step) -> tuple[Draw, Tensor, float, tuple[AttentionMaps, ...] | None, int]:
        """The first (t, eps) whose e says enough, e, its std, the maps if words are localised, and how many draws were
        rejected before; that number is retries + 1 if none was good enough."""
        target, source = step.prompts.target, step.prompts.source
        rows = step.z.shape[0]
        from_target = step.prompts.mask_from == "target"
        recorded = slice(0, rows) if from_target else slice(rows, 2 * rows)
        listens = bool(step.prompts.tokens) and step.mask is None
        rejected = 0
        while True:
            draw = step.draw()
            z_t = prior.schedule.add_noise(step.z, draw.eps, draw.t)
            probe = self._probe(step.prompts, recorded, rows) if listens else None
            (e_tgt, e_src), maps = predict(prior, draw.t, (z_t, target), (z_t, source), probe=probe)
            e = e_tgt - e_src
            std = e.std(correction=0).item()  # the one host read
            if std < self.tau * self.tau_decay**rejected:
                rejected += 1
                if rejected <= self.retries:
                    continue
            return draw, e, std, cast("tuple[AttentionMaps, ...] | None", maps), rejected

    @staticmethod
    def _probe(prompts: Prompts, recorded: slice, rows: int) -> SeveralProbes:
        probes = [AttentionProbe(prompts.tokens, recorded)]
        if prompts.replaced:
            probes.append(AttentionProbe(prompts.replaced, slice(rows, 2 * rows)))
        return SeveralProbes(probes)

    def _mask(self, step: Step, state: State, like: Tensor) -> Tensor:
        """M_i, [1, 1, h, w] or broadcastable to it."""
        if step.mask is not None:
            return step.mask
        if state.mask is None:
            return torch.ones_like(like[:1, :1])
        return step.progress * state.mask + (1 - step.progress)

    def _delta(self, step: Step) -> float:
        u = 10 * step.progress - 5
        return self.delta_low + (self.delta_high - self.delta_low) / (1 + math.exp(u))


def _rms_inside(d: Tensor, mask: Tensor) -> Tensor:
    """Root of the mean of d^2 weighted by the mask, 0-dim; d [B, C, h, w], mask broadcastable to it."""
    weight = mask.expand_as(d)
    return ((weight * d.square()).sum() / weight.sum().clamp(min=torch.finfo(d.dtype).tiny)).sqrt()


@dataclass(frozen=True)
class FastLUSD(LUSD):
    """LUSD in a fraction of the passes. Step i of n asks about D draws in one pass and takes their mean,

        e     = 1/D sum_j e_j                               in the place of redraws
        t_ij  = t_max - (t_max - t_min) (i + (j + u) / D) / n     "descending", u uniform on 0..1
        t_ij  = t_min + (t_max - t_min) (j + u) / D               "stratified"

    so that the few times that a short run sees are spread evenly: descending, the shape comes first and its details
    last, as a sampler draws; stratified, every step sees all noise levels. "uniform" is LUSD's own.

    The run ends where z stops moving away from z_src: rms(z - z_src) grew by less than `plateau` of itself over the
    last quarter of the steps, the second half begun. docs/experiments.md has what else was tried.

    What few steps leave undone, the redrawing that follows can do, if it starts from more noise or follows the words
    more closely than after a long run.
    """

    steps: int = 64
    step_size: float = 1.8
    draws: int = 2
    times: Literal["stratified", "descending", "uniform"] = "stratified"
    plateau: float = 0.02  # 0: the run never ends early
    redraw: int = 8  # steps of the redrawing that follows, at most
    redraw_start: float = 0.0  # its t, where the place is no background; 0: the model's own
    redraw_scale: float = 0.0  # its CFG, likewise

    def __call__(self, prior: Prior, step: Step, state: State | None = None) -> Update:
        update = super().__call__(prior, step, state)
        moved: list[Tensor] = [*(state.learned if state and state.learned else ()), update.stats["distance"]]
        window = max(step.total // 4, 2)
        last = False
        if self.plateau and step.index >= step.total // 2 and len(moved) > window:
            last = bool(moved[-1] < (1 + self.plateau) * moved[-1 - window])
        assert update.state is not None
        return replace(update, state=replace(update.state, learned=moved), last=last)

    def _filtered(self, prior: Prior, step: Step) -> tuple[Draw, Tensor, float, tuple[AttentionMaps, ...] | None, int]:
        draws = [self._placed(step.draw(), j, step) for j in range(self.draws)]
        t, eps = torch.cat([draw.t for draw in draws]), torch.cat([draw.eps for draw in draws])
        rows, views = t.shape[0], step.z.shape[0]
        z_t = prior.schedule.add_noise(step.z.repeat(self.draws, 1, 1, 1), eps, t)
        target, source = (
            text if len(text) == 1 else text.repeat(self.draws) for text in (step.prompts.target, step.prompts.source)
        )
        recorded = slice(0, rows) if step.prompts.mask_from == "target" else slice(rows, 2 * rows)
        listens = bool(step.prompts.tokens) and step.mask is None
        probe = self._probe(step.prompts, recorded, rows) if listens else None
        (e_tgt, e_src), maps = predict(prior, t, (z_t, target), (z_t, source), probe=probe)
        e = (e_tgt - e_src).unflatten(0, (self.draws, views)).mean(0)
        std = e.std(correction=0).item()
        quiet = std < self.tau  # nothing to be said about these prompts
        maps = cast("tuple[AttentionMaps, ...] | None", maps)
        return Draw(t, eps), e, std, maps, self.retries + 1 if quiet else 0

    def _placed(self, draw: Draw, j: int, step: Step) -> Draw:
        """A uniform draw moved into the stratum of draw j of this step."""
        extent = self.t_max - self.t_min
        u = (draw.t - self.t_min) / extent
        if self.times == "descending":
            t = self.t_max - extent * (step.index + (j + u) / self.draws) / step.total
        elif self.times == "stratified":
            t = self.t_min + extent * (j + u) / self.draws
        else:
            t = draw.t
        return Draw(t, draw.eps)
