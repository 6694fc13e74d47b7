"""How a loaded network runs: which attention computes it, compiled or not, layer by layer from main memory.

All of it belongs to one model: nothing here changes a global setting of torch or diffusers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdsedit.errors import InputRefused, printable

P = TypeVar("P")
AttentionName = Literal["sdpa", "flash", "efficient", "cudnn", "math", "xformers"]

# torch's own kernels: the name in torch.nn.attention.SDPBackend, and in diffusers' dispatcher, which FLUX.1 asks.
_KERNELS = {
    "flash": ("FLASH_ATTENTION", "_native_flash"),
    "efficient": ("EFFICIENT_ATTENTION", "_native_efficient"),
    "cudnn": ("CUDNN_ATTENTION", "_native_cudnn"),
    "math": ("MATH", "_native_math"),
}


def check_attention(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """InputRefused: no such attention, or this machine has no kernel of it; tried on a few numbers."""
    if name not in get_args(AttentionName):
        known = ", ".join(get_args(AttentionName))
        raise InputRefused(f"Attention can be {known}; got {printable(name)}.")
    if name in _KERNELS:
        q = torch.zeros(1, 2, 16, 64, device=device, dtype=dtype)
        try:
            with _kernel(name):
                F.scaled_dot_product_attention(q, q, q)
        except RuntimeError as error:
            kind = str(dtype).removeprefix("torch.")
            raise InputRefused(f"{name} attention does not run on {device} in {kind}; sdpa does.") from error


def set_attention(network: nn.Module, name: str) -> None:
    """Let all attention layers of a network, and of no other, use one implementation; `sdpa` lets torch choose.

    FLUX.1's layers ask diffusers' dispatcher and carry its name; those of UNets and SD3 call torch themselves, so their
    processors are wrapped. The attention probe works on top of any. InputRefused: xformers is not to be had.
    """
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0, JointAttnProcessor2_0

    for attn in network.modules():
        if isinstance(attn, AttentionModuleMixin):
            attn.set_attention_backend("native" if name == "sdpa" else _KERNELS.get(name, ("", name))[1])
        elif isinstance(attn, Attention):
            own: Any = JointAttnProcessor2_0() if hasattr(network, "transformer_blocks") else AttnProcessor2_0()
            if name in _KERNELS:
                attn.set_processor(_OneKernel(own, name))  # pyright: ignore[reportArgumentType]  # any callable will do
            elif name == "sdpa":
                attn.set_processor(own)
    if name == "xformers":
        _use_xformers(network)


def _use_xformers(network: nn.Module) -> None:
    from diffusers.models.attention_processor import Attention, XFormersJointAttnProcessor

    try:
        from xformers.ops import memory_efficient_attention  # pyright: ignore[reportMissingImports]

        if not torch.cuda.is_available():
            raise NotImplementedError
        assert memory_efficient_attention
        if hasattr(network, "transformer_blocks"):
            for attn in network.modules():
                if isinstance(attn, Attention):
                    attn.set_processor(XFormersJointAttnProcessor())  # pyright: ignore[reportArgumentType]
        else:
            network.enable_xformers_memory_efficient_attention()  # pyright: ignore[reportCallIssue]
    except (ImportError, ValueError, NotImplementedError, RuntimeError) as error:
        raise InputRefused("xformers attention needs a CUDA GPU and `pip install xformers`; sdpa does not.") from error


class _OneKernel:
    """An attention processor that runs another one with one of torch's kernels."""

    def __init__(self, own: Callable, name: str) -> None:
        self.own, self.name = own, name

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Any:
        with _kernel(self.name):
            return self.own(
                attn, hidden_states, encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask
            )


def _kernel(name: str) -> Any:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(getattr(SDPBackend, _KERNELS[name][0]))


def compile_blocks(network: nn.Module, backend: str = "inductor") -> None:
    """torch.compile for each transformer block: alike blocks are compiled once, and the first steps are slow.

    Blocks, and no whole network: the attention probe changes the processors of some from step to step, which a compiled
    block follows without compiling again. A UNet's convolutions stay as they are: they are of too many shapes for that.
    """
    from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock

    repeated = tuple(getattr(network, "_repeated_blocks", None) or ())  # FLUX.1 names its own
    for block in network.modules():
        if isinstance(block, BasicTransformerBlock | JointTransformerBlock) or type(block).__name__ in repeated:
            block.compile(backend=backend)


def offload_layers(network: nn.Module, device: torch.device) -> None:
    """Sequential offload: the weights stay in main memory and every layer's come to the device while it runs. As little
    device memory as can be, and slow."""
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(network, onload_device=device, offload_device=torch.device("cpu"), offload_type="leaf_level")


def twin_of(prior: P, parts: Sequence[str]) -> P:
    """A prior for another thread: weights and all else are shared, but the networks named `parts` are objects of its
    own, so that what is hung on one while it runs (a probe, hooks) is each one's own."""
    twin = copy.copy(prior)
    for part in parts:
        network = getattr(prior, part)
        shared = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
        setattr(twin, part, copy.deepcopy(network, shared))
    return twin


@contextmanager
def channels_last(networks: Sequence[nn.Module]) -> Iterator[None]:
    """While it lasts, the weights of convolutions lie with their channels last, and what passes through follows them:
    between convolutions and attention nothing is turned round."""
    try:
        for network in networks:
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # not in torch's stubs
        yield
    finally:
        for network in networks:
            network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


def start_offload(prior: Any, networks: Sequence[nn.Module]) -> bool:
    """From here on at most one of the networks is on the prior's device; False if it is offloaded already."""
    if prior.offload:
        return False
    for network in networks:
        nn.Module.to(network, "cpu")
    prior.offload, prior.resident = True, None
    return True


def bring(prior: Any, network: nn.Module) -> None:
    """Under offload, bring a network to the prior's device after sending away the one that was there."""
    if prior.offload is True and prior.resident is not network:
        if prior.resident is not None:
            prior.resident.to("cpu")
        network.to(prior.device)
        prior.resident = network
