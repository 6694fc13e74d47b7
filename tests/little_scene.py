"""A scene of some hundreds of Gaussians: a red ball on grass, up being -y, and a few that nobody sees."""

from __future__ import annotations

import numpy as np

from sdsedit.io.splats import Splats

BALL, GRASS, HIDDEN = 200, 100, 30  # Gaussians


def little_scene(degree: int = 0, seed: int = 0) -> Splats:
    """Rows of the ball first; the extra property `part` is 1 there, 0 on the grass, and 2 for those too clear to see.

    These are last and far off: no words are found there, whatever the model.
    """
    rng = np.random.default_rng(seed)
    count = BALL + GRASS + HIDDEN
    ball = rng.normal(size=(BALL, 3))
    ball *= 0.5 / np.linalg.norm(ball, axis=1, keepdims=True)
    grass = np.stack([rng.uniform(-1, 1, GRASS), np.full(GRASS, 0.52), rng.uniform(-1, 1, GRASS)], 1)
    hidden = (0, -5, 0) + 0.1 * rng.normal(size=(HIDDEN, 3))
    colours = np.repeat([(0.8, 0.1, 0.1), (0.3, 0.7, 0.3), (0.2, 0.2, 0.2)], [BALL, GRASS, HIDDEN], axis=0)
    log_scales = np.full((count, 3), np.log(0.08), np.float32)
    log_scales[BALL : BALL + GRASS, 1] = np.log(0.01)
    quats = np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1))
    sh = np.zeros((count, (degree + 1) ** 2, 3), np.float32)
    sh[:, 0] = (colours - 0.5) / 0.28209479177387814
    sh[:, 1:] = rng.normal(size=sh[:, 1:].shape) * 0.02
    part = np.repeat(np.array([1, 0, 2], np.uint8), [BALL, GRASS, HIDDEN])
    means = np.concatenate([ball, grass, hidden]).astype(np.float32)
    logits = np.where(part == 2, -12, 2).astype(np.float32)
    return Splats(means, quats, log_scales, logits, sh, {"part": part}, ("a ball on grass",))
