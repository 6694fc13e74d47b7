"""`sdsedit doctor`: what is installed, which backends really work, and a three-step edit."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from sdsedit import errors
from sdsedit._version import __version__
from sdsedit.errors import InputRefused, one_sentence

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
        missing = type(error).__name__ == "ModelNotFound"
        code = errors.MODEL_MISSING if missing else errors.USAGE if isinstance(error, InputRefused) else errors.INTERNAL
        sentence = one_sentence(error)
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


def _three_steps(model: str) -> str:
    """A green field with an orange disc, asked to be a cat: enough to run every part once."""
    from sdsedit.edit import Edit, EditConfig, edit
    from sdsedit.prior.load import load_prior

    start = time.perf_counter()
    prior = load_prior(model)
    loaded = time.perf_counter()
    side = prior.native
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    picture = torch.where(
        x**2 + y**2 < 0.3, torch.tensor([0.9, 0.6, 0.2]).view(3, 1, 1), torch.tensor([0.3, 0.7, 0.3]).view(3, 1, 1)
    )
    result = edit(picture[None], prior, Edit(target="a cat on grass", source="grass"), EditConfig(steps=3))
    if result.stopped:
        raise RuntimeError(result.stopped)
    return f"works on {prior.device} with {prior.name}: {loaded - start:.1f} s to load, {result.seconds:.1f} s to edit"
