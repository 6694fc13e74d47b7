"""`sdsedit doctor`: what is installed, which backends really work, and a model's check-up.

`examine` prints what is here and makes a three-step edit. `check_model` prints a report in Markdown, made to be pasted
into an issue: not every model can be tried on the machines of the people who write this, so the report says in numbers
whether a model means what its settings say. It holds no folder of the machine.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from sdsedit import errors
from sdsedit._version import __version__
from sdsedit.errors import InputRefused, one_sentence, printable

if TYPE_CHECKING:
    from sdsedit.prior.mmdit import MMDiTPrior
    from sdsedit.prior.unet import UNetPrior

    LoadedPrior = UNetPrior | MMDiTPrior

_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "pillow",
    "rich",
)


def examine(model: str = "builtin") -> int:
    """Print the report; gives `errors.OK` if the edit worked, else the exit code of what went wrong."""
    print(f"sdsedit {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    for package in _PACKAGES:
        print(f"  {package:16} {_version(package) or 'missing: reinstall sdsedit'}")
    print("Backends")
    for name, check in (
        ("cpu", _cpu),
        ("cuda", _cuda),
        ("mps", _mps),
        ("triton", _triton),
        ("xformers", _xformers),
        ("gsplat", _gsplat),
    ):
        print(f"  {name:16} {_said(check)}")
    print(
        f"Hub                {'offline (HF_HUB_OFFLINE)' if os.environ.get('HF_HUB_OFFLINE') else 'online when asked'}"
    )
    try:
        sentence, code = _three_steps(model), errors.OK
    except Exception as error:
        code, sentence = _code(error), one_sentence(error)
    print(f"Three-step edit    {sentence}")
    peak = peak_memory()
    if peak:
        print(f"Memory             {peak / 2**20:.0f} MiB at most so far in this process")
    return code


def peak_memory() -> int:
    """The most main memory in bytes that this process has had so far; 0 where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _said(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:  # a broken backend is a finding, not a failure
        return f"installed, does not work: {one_sentence(error)}"


def _multiplies(device: str) -> bool:
    a = torch.eye(8, device=device)
    return bool((a @ a == a).all())


def _cpu() -> str:
    return f"{'works' if _multiplies('cpu') else 'gives wrong numbers'}, {torch.get_num_threads()} threads"


def _cuda() -> str:
    if not torch.cuda.is_available():
        return f"no GPU (PyTorch is built {'for CUDA ' + torch.version.cuda if torch.version.cuda else 'without CUDA'})"
    works = _multiplies("cuda")
    properties = torch.cuda.get_device_properties(0)
    name, memory = properties.name, properties.total_memory / 2**30
    return f"{'works' if works else 'gives wrong numbers'}, {torch.cuda.device_count()} x {name}, {memory:.0f} GiB"


def _mps() -> str:
    if not torch.backends.mps.is_available():
        return "not on this machine"
    return "works" if _multiplies("mps") else "gives wrong numbers"


def _triton() -> str:
    if find_spec("triton") is None:
        return "not installed (pip install 'sdsedit[cuda]')"
    if not torch.cuda.is_available():
        return f"{_version('triton')}, not tried: no CUDA GPU"
    compiled = torch.compile(lambda x: x * 2 + 1)  # inductor writes this as a Triton kernel
    a = torch.arange(8.0, device="cuda")
    return f"{_version('triton')}, {'works' if torch.equal(compiled(a), a * 2 + 1) else 'gives wrong numbers'}"


def _xformers() -> str:
    if find_spec("xformers") is None:
        return "not installed (pip install 'sdsedit[cuda]'); PyTorch's own attention is used"
    if not torch.cuda.is_available():
        return f"{_version('xformers')}, not tried: no CUDA GPU"
    from xformers.ops import memory_efficient_attention  # pyright: ignore[reportMissingImports]

    q = torch.randn(1, 16, 2, 16, device="cuda", dtype=torch.float16)
    heads = q.transpose(1, 2)
    expected = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2)
    close = torch.allclose(memory_efficient_attention(q, q, q), expected, atol=1e-2)
    return f"{_version('xformers')}, {'works' if close else 'gives wrong numbers'}"


def _gsplat() -> str:
    if find_spec("gsplat") is None:
        return "not installed (pip install 'sdsedit[cuda]')"
    return f"{_version('gsplat')}, not tried: it compiles its kernels when it is first used"


def _code(error: Exception) -> int:
    if type(error).__name__ == "ModelNotFound":
        return errors.MODEL_MISSING
    if errors.out_of_memory(error):
        return errors.OUT_OF_MEMORY
    return errors.USAGE if isinstance(error, InputRefused) else errors.INTERNAL


def _three_steps(model: str) -> str:
    from sdsedit.prior.load import load_prior

    start = time.perf_counter()
    prior = load_prior(model)
    loaded = time.perf_counter() - start
    said = _edit(prior)
    return f"works on {prior.device} with {prior.name}: {loaded:.1f} s to load, {said.said}"


# ---- A model's check-up


@dataclass(frozen=True)
class Check:
    """One finding about a model."""

    name: str
    verdict: Literal["ok", "look", "failed"]  # look: it runs, but a trained model should do better
    said: str


_SIGNS = {"ok": "ok", "look": "**look**", "failed": "**failed**"}
_SOURCE, _TARGET = "an orange disc on grass", "an orange cat on grass"


def check_model(model: str) -> int:
    """Print a model's report in Markdown; `errors.OK` if nothing failed, else the exit code of what went wrong."""
    from sdsedit.prior.load import load_prior

    folder = Path(model).expanduser()
    print(f"### sdsedit doctor: {printable(folder.name if folder.exists() else model)}\n")
    print(f"sdsedit {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    packages = ("torch", "diffusers", "transformers", "accelerate", "xformers")
    print(", ".join(f"{package} {_version(package) or 'absent'}" for package in packages), flush=True)
    start = time.perf_counter()
    try:
        prior = load_prior(model)
    except Exception as error:
        print(f"\nIt does not load: {one_sentence(error)}")
        return _code(error)
    print(f"{_device(prior.device)}\n\n{_facts(prior, time.perf_counter() - start)}\n")
    print("| check | | found |\n|---|---|---|")
    failed = errors.OK
    for name, check in (
        ("picture to latent and back", _round_trip),
        ("latent scale", _latent_scale),
        ("a batch is its rows", _rows),
        ("noise is predicted", _noise),
        ("words are told apart", _words),
        ("attention maps", _attention),
        ("three-step edit", _edit),
    ):
        try:
            found = check(prior)
        except Exception as error:  # a finding; the rest may still work
            found, failed = Check(name, "failed", f"{type(error).__name__}: {one_sentence(error)}"), _code(error)
        if found.verdict == "failed" and failed == errors.OK:
            failed = errors.ALL_FAILED
        print(f"| {found.name} | {_SIGNS[found.verdict]} | {found.said.replace('|', '/')} |", flush=True)
    print(f"\nMemory: {_memory(prior.device)}")
    print("`look`: it runs, but a trained model with the right settings does better.")
    return failed


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        torch.cuda.reset_peak_memory_stats(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return f"{device.type}, {torch.get_num_threads()} threads"


def _facts(prior: LoadedPrior, seconds: float) -> str:
    """What the settings say, as a list."""
    network = _network(prior)
    config: Any = prior.vae.config
    parts = {"network": network, "text encoders": prior.text_encoders, "autoencoder": prior.vae}
    millions = ", ".join(
        f"{name} {sum(w.numel() for w in part.parameters()) / 1e6:.1f} M" for name, part in parts.items()
    )
    told = getattr(prior, "distilled_guidance", None)
    return "\n".join(
        (
            f"- {type(network).__name__}, loaded in {seconds:.1f} s; parameters: {millions}",
            f"- {str(prior.dtype).removeprefix('torch.')}, predicts {prior.schedule.prediction} over "
            f"{prior.schedule.num_train_timesteps} times, shift {prior.schedule.shift}",
            f"- {prior.native} px, {prior.factor} px a cell, sides in multiples of {prior.multiple}, {prior.channels} "
            f"latent channels, scale {config.scaling_factor:g}, shift {config.get('shift_factor') or 0:g}",
            f"- {prior.max_tokens} text tokens" + ("" if told is None else f", distilled guidance {told:g}"),
        )
    )


def _network(prior: LoadedPrior) -> torch.nn.Module:
    network = getattr(prior, "unet", None)
    return prior.transformer if network is None else network  # pyright: ignore[reportAttributeAccessIssue]


def _picture(prior: LoadedPrior) -> Tensor:  # [1, 3, native, native]
    """A green field with an orange disc."""
    line = torch.linspace(-1, 1, prior.native)
    y, x = torch.meshgrid(line, line, indexing="ij")
    disc, field = torch.tensor([0.9, 0.6, 0.2]).view(3, 1, 1), torch.tensor([0.3, 0.7, 0.3]).view(3, 1, 1)
    grass = 0.06 * torch.randn(3, prior.native, prior.native, generator=torch.Generator().manual_seed(0))
    return torch.where(x**2 + y**2 < 0.3, disc, field + grass).clamp(0, 1)[None].to(prior.device)


@torch.no_grad()
def _round_trip(prior: LoadedPrior) -> Check:
    picture = _picture(prior)
    z = prior.encode(picture)
    back = prior.decode(z)
    side = prior.native // prior.factor
    shapes = z.shape == (1, prior.channels, side, side) and back.shape == picture.shape
    if not shapes or not back.isfinite().all():
        return Check("picture to latent and back", "failed", f"{list(z.shape)} and {list(back.shape)}, or not finite")
    error = float((back - picture).abs().mean())
    verdict = "ok" if error < 0.1 else "look"
    return Check("picture to latent and back", verdict, f"latent {list(z.shape[1:])}, mean difference {error:.3f} of 1")


@torch.no_grad()
def _latent_scale(prior: LoadedPrior) -> Check:
    """Models are trained on latents of about unit spread: a wrong scale or shift shows here."""
    z = prior.encode(_picture(prior))
    spread, mean = float(z.std()), float(z.mean())
    verdict = "ok" if 0.3 < spread < 3 else "look"
    return Check("latent scale", verdict, f"standard deviation {spread:.2f}, mean {mean:+.2f}; about 1 and 0 are usual")


def _draw(prior: LoadedPrior, t: float) -> tuple[Tensor, Tensor, Tensor]:
    """A noised picture, its noise, its time."""
    z = prior.encode(_picture(prior))
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(prior.device)
    times = torch.tensor([t], device=prior.device)
    return prior.schedule.add_noise(z, eps, times), eps, times


@torch.no_grad()
def _rows(prior: LoadedPrior) -> Check:
    z_t, _, t = _draw(prior, 0.5)
    text = prior.encode_text([_SOURCE, _TARGET])
    both = prior.predict(torch.cat([z_t, z_t]), t, text).eps
    alone = prior.predict(z_t, t, text[1]).eps
    error = float((both[1:] - alone).abs().max() / alone.abs().max().clamp_min(1e-9))
    limit = 1e-3 if prior.dtype == torch.float32 else 0.05
    return Check("a batch is its rows", "ok" if error < limit else "look", f"largest relative difference {error:.1e}")


@torch.no_grad()
def _noise(prior: LoadedPrior) -> Check:
    """How much of the noise the network finds, against a guess that knows no more than the latent's mean and spread,
    eps = s (z_t - a mean) / (a^2 var + s^2): a wrong kind of prediction, time or scale shows here."""
    z = prior.encode(_picture(prior))
    found, better = [], True
    for t in (0.3, 0.6, 0.9):
        z_t, eps, times = _draw(prior, t)
        said = prior.predict(z_t, times, prior.encode_text([_SOURCE])).eps
        if not said.isfinite().all():
            return Check("noise is predicted", "failed", f"not finite at t = {t}")
        alpha, sigma = prior.schedule.alpha_sigma(times)
        mean, var = z.mean((2, 3), keepdim=True), z.var((2, 3), keepdim=True)
        guess = sigma * (z_t - alpha * mean) / (alpha**2 * var + sigma**2)
        error, blind = (float((each - eps).square().mean()) for each in (said, guess))
        found.append(f"{100 * (1 - error):.0f} % at t = {t} (a blind guess {100 * (1 - blind):.0f} %)")
        better = better and (error < 0.8 * blind or t > 0.6)  # near pure noise there is little to know
    return Check("noise is predicted", "ok" if better else "look", f"of its variance {', '.join(found)}")


@torch.no_grad()
def _words(prior: LoadedPrior) -> Check:
    """LUSD's signal: how far two prompts' predictions are apart."""
    z_t, _, t = _draw(prior, 0.6)
    target, source = prior.predict(torch.cat([z_t, z_t]), t, prior.encode_text([_TARGET, _SOURCE])).eps
    spread = float((target - source).std())
    verdict = "ok" if 1e-3 < spread < 1 else "look"
    return Check("words are told apart", verdict, f"standard deviation of the difference {spread:.4f} at t = 0.6")


@torch.no_grad()
def _attention(prior: LoadedPrior) -> Check:
    from sdsedit.attention.joint import is_joint, joint_blocks
    from sdsedit.attention.probe import AttentionProbe
    from sdsedit.attention.words import find_words

    z_t, _, t = _draw(prior, 0.5)
    text = prior.encode_text([_SOURCE])
    tokens = find_words(prior.tokenize, _SOURCE, ["disc"]).tokens
    plain = prior.predict(z_t, t, text).eps
    heard = prior.predict(z_t, t, text, AttentionProbe(tokens))
    maps, network = heard.maps, _network(prior)
    size = "x".join(str(side) for side in maps.cross.shape[-2:])
    refined = "none" if maps.refined is None else "x".join(str(side) for side in maps.refined.shape[-2:])
    of = ""
    if is_joint(network):
        count = len(network.transformer_blocks)  # pyright: ignore[reportArgumentType]
        of = f" of joint blocks {joint_blocks(count)} of {count}"
    if not torch.equal(plain, heard.eps) and not torch.allclose(plain, heard.eps, rtol=1e-3, atol=1e-4):
        return Check("attention maps", "failed", "recording them changed the prediction")
    shown = maps.cross.mean((0, 1)) if maps.refined is None else maps.refined.mean((0, 1))
    contrast = float((shown.amax() - shown.amin()) / shown.amax().clamp_min(1e-12))
    verdict = "ok" if contrast > 0.1 else "look"
    said = f"words {size}, refined {refined}{of}; contrast {contrast:.2f}, share {float(maps.cross.mean()):.4f} a token"
    return Check("attention maps", verdict, said)


def _edit(prior: LoadedPrior) -> Check:
    """Enough to run every part once."""
    from sdsedit.edit import Edit, EditConfig, edit

    result = edit(_picture(prior), prior, Edit(target=_TARGET, source=_SOURCE), EditConfig(steps=3, refine=0.0))
    if result.stopped:
        raise RuntimeError(result.stopped)
    moved = float((result.z - result.z_src).square().mean().sqrt())
    words = ", ".join(result.words)
    return Check("three-step edit", "ok", f"{result.seconds:.1f} s to edit, looked for: {words}; moved {moved:.3f}")


def _memory(device: torch.device) -> str:
    parts = [f"{peak_memory() / 2**20:.0f} MiB of main memory at most"] if peak_memory() else []
    if device.type == "cuda":
        parts.append(f"{torch.cuda.max_memory_allocated(device) / 2**20:.0f} MiB of the GPU's at most")
    return ", ".join(parts) or "not told by this system"
