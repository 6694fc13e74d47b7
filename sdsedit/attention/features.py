"""What the layers of a UNet's decoder say during one forward pass, with autograd."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from sdsedit.errors import InputRefused


class DecoderFeatures:
    """A Probe that records the outputs of the self-attention layers on the UNet's way up, before they are added to what
    went in, as in CDS, arXiv:2311.18608; they carry autograd where it is on.

    rows: the rows of the network's batch to record, as a slice.
    """

    def __init__(self, rows: slice = slice(None)) -> None:
        self.rows = rows
        self._seen: list[Tensor] = []

    @contextmanager
    def attach(self, network: Any, batch: int, latent_size: tuple[int, int]) -> Iterator[None]:
        """Record the forward pass made inside the `with`. InputRefused: the network has no such layers."""
        layers = [
            layer
            for name, layer in network.named_modules()
            if name.startswith("up_blocks.") and name.endswith(".attn1")
        ]
        if not layers:
            raise InputRefused("CDS reads the decoder of a UNet, which this model does not have: use DDS or LUSD.")
        self._seen = []

        def record(_: Any, __: Any, output: Tensor) -> None:  # [B, N, C]
            grid = _grid(output.shape[1], latent_size)
            self._seen.append(output[self.rows].transpose(1, 2).unflatten(-1, grid))

        hooks = [layer.register_forward_hook(record) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def collect(self) -> tuple[Tensor, ...]:  # [R, C_l, h_l, w_l] each, in call order
        seen, self._seen = tuple(self._seen), []
        return seen


def _grid(cells: int, latent_size: tuple[int, int]) -> tuple[int, int]:
    """The sides of a layer of so many cells: the latent's, halved some times, each time rounded up."""
    height, width = latent_size
    while height * width > cells:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != cells:
        raise ValueError(f"A layer of {cells} cells is no halving of a latent of {latent_size[0]} x {latent_size[1]}.")
    return height, width
