"""How long an edit takes, from the command and in the loop, how much memory, and what listening to attention costs.

    python -m benchmarks.speed                       # the built-in model
    python -m benchmarks.speed --model FOLDER --runs 1

- command: wall seconds of `sdsedit image` from start to exit in a fresh process, and its peak resident memory;
- optimisation: `EditResult.seconds` of the same edit with the model loaded (encoding and decoding included);
- probe: median seconds of a batch-2 forward that records one row, over the median of the plain one, the two in turns
  (plain, probe, plain, probe, ...), so that whatever else the machine does hits both alike;
- floor: what one pass of the network needs at least, the larger of its multiplications over the rate of a large matrix
  product here and of its weights' bytes over the rate of a large copy; and how much of the real pass that is;
- energy of an edit, where the machine tells it: the processor's (RAPL) and the GPU's (NVML, if pynvml is installed);
- reference: seconds of an edit by benchmarks/reference_loop.py over those of the same edit here, steps in turns;
- methods: median seconds between two steps;
- `--true-size`: a LUSD step of published configurations with random weights at their own size; without names of
  Stable Diffusion 1.5's at 512 x 512, and on a GPU of SDXL's and FLUX.1's at 1024 x 1024.

Medians throughout. Nothing else should run meanwhile: the load average is written down with the numbers, and the
command's processor time tells a slow edit from a busy machine.
Writes docs/benchmarks/speed.md. Linux and macOS (peak memory is getrusage's).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from sdsedit.prior import UNetPrior
    from sdsedit.prior.base import Prior

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "benchmarks"
PICTURE = ROOT / "assets" / "examples" / "cat.png"
SOURCE, TARGET, WORD = "a cat on grass", "a cat wearing a crown on grass", "crown"
COMMAND = "import sys; from sdsedit.cli import main; sys.exit(main())"  # what the installed script `sdsedit` does
IMPORT = "import time; t = time.perf_counter(); import sdsedit; print(time.perf_counter() - t)"


@dataclass(frozen=True)
class Row:
    """A line of the table: a number, how to write it, and the most that it may be."""

    what: str
    value: float
    form: str
    gate: float | None = None
    least: bool = False  # the gate is the least that it may be

    def cells(self) -> str:
        gate = "" if self.gate is None else f"at {'least' if self.least else 'most'} {self.form.format(self.gate)}"
        good = self.gate is None or (self.value >= self.gate if self.least else self.value <= self.gate)
        met = "" if self.gate is None else ("yes" if good else "**no**")
        return f"| {self.what} | {self.form.format(self.value)} | {gate} | {met} |"


def machine() -> list[str]:
    """What ran it; call before anything has run, for the load is that of the others."""
    load = os.getloadavg()[0]
    name = platform.processor() or platform.machine()
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        lines = facts.read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    python = f"Python {platform.python_version()}"
    return [f"{usable} CPU cores ({name})", f"load average {load:.1f} at the start", python]


# --- in processes of their own ----------------------------------------------------------------------------------------


def timed(code: str, *words: str) -> tuple[float, str]:
    """Wall seconds of `python -c code words`, and what it printed. RuntimeError with its last line if it failed."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return seconds, done.stdout


def start_up(runs: int) -> list[Row]:
    imported = statistics.median(float(timed(IMPORT)[1]) for _ in range(2 * runs))
    helped = statistics.median(timed(COMMAND, "--help")[0] for _ in range(2 * runs))
    return [
        Row("`import sdsedit`", imported, "{:.3f} s", 0.3),
        Row("`sdsedit --help`, from command start", helped, "{:.2f} s", 1.0),
    ]


def command(model: str, runs: int) -> list[Row]:
    """The default edit as a person runs it.

    getrusage gives the largest of all finished children, and on Linux a child begins with the peak of the process that
    started it: so this runs before anything heavy is loaded here.
    """
    assert "torch" not in sys.modules
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "cat-crown.png")
        words = ["image", str(PICTURE), "--source", SOURCE, "--target", TARGET, "--model", model]
        words += ["--output", output, "--overwrite"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = statistics.median(timed(COMMAND, *words)[0] for _ in range(runs))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / runs
    peak = after.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return [
        Row("`sdsedit image`, the default LUSD edit, from command start", seconds, "{:.1f} s", 15.0),
        Row("its processor time, all cores together", busy, "{:.1f} s"),
        Row("its peak memory", peak / 1e6, "{:.0f} MB", 1500.0),
    ]


# --- in this process --------------------------------------------------------------------------------------------------


def optimisation(prior: UNetPrior, runs: int) -> list[Row]:
    from sdsedit.edit import Edit, EditConfig, edit
    from sdsedit.io.images import read_picture

    image, request = read_picture(str(PICTURE)).tensor(), Edit(target=TARGET, source=SOURCE)
    edit(image, prior, request, EditConfig(steps=2))  # first calls allocate and choose kernels
    before = energy()
    results = [edit(image, prior, request) for _ in range(runs)]
    after = energy()
    steps = results[0].steps_done
    seconds = statistics.median(result.seconds for result in results)
    rows = [
        Row(f"its optimisation, {steps} steps, model loaded", seconds, "{:.1f} s", 10.0),
        Row("steps a second, encoding and decoding counted in", steps / seconds, "{:.1f}"),
    ]
    if before is not None and after is not None:
        rows.append(Row("its energy", (after - before) / runs, "{:.0f} J"))
    if prior.device.type == "cuda":
        import torch

        rows.append(Row("its peak memory on the GPU", torch.cuda.max_memory_allocated() / 1e6, "{:.0f} MB"))
    return rows


def energy() -> float | None:
    """Joules that processors and GPUs have used since some time before; None if this machine does not tell."""
    told = []
    for counter in Path("/sys/class/powercap").glob("intel-rapl:[0-9]"):  # a package each
        with contextlib.suppress(OSError):  # only root may read it on some machines
            told.append(int((counter / "energy_uj").read_text()) / 1e6)
    try:
        import pynvml  # pyright: ignore[reportMissingImports]

        pynvml.nvmlInit()
        for k in range(pynvml.nvmlDeviceGetCount()):
            told.append(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(k)) / 1e3)
    except ImportError:
        pass
    except pynvml.NVMLError:  # no driver, or a GPU that does not count
        pass
    return sum(told) if told else None


@dataclass(frozen=True)
class Rates:
    """What this machine does at most: operations a second in one number type, and bytes a second."""

    operations: float
    bytes: float


def rates(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> Rates:
    """Measured: a product of two square matrices, and a copy that fits no cache (read and written counted)."""
    import torch

    side = 2048 if device.type == "cpu" else 8192
    a = torch.randn(side, side, device=device, dtype=dtype)
    there = torch.zeros(2**27, device=device)  # 512 MiB
    here = torch.zeros_like(there)
    products, copies = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        float((a @ a)[0, 0])
        middle = time.perf_counter()
        here.copy_(there)
        float(here[0])
        products.append(middle - start)
        copies.append(time.perf_counter() - middle)
    return Rates(2 * side**3 / statistics.median(products), 8 * there.numel() / statistics.median(copies))


def work(prior: Prior, rows: int) -> tuple[float, float]:
    """Operations of one pass (a multiplication and an addition are two) of so many rows on the native latent, and
    bytes of the network's weights."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.backbones import blank_text

    network: Any = getattr(prior, "unet", None) or getattr(prior, "transformer", None)
    weights = sum(w.numel() * w.element_size() for w in network.parameters())
    side = prior.native // prior.factor
    z = torch.zeros(rows, prior.channels, side, side, device=prior.device)
    # As plain products, for a CPU's fused attention is not counted.
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        prior.predict(z, torch.full((rows,), 0.5, device=prior.device), blank_text(prior, rows))  # pyright: ignore[reportArgumentType]
    return float(counted.get_total_flops()), float(weights)


def floor(prior: Prior, rows: int, seconds: float, most: Rates) -> list[Row]:
    """How far a pass of `seconds` is from what the machine could do."""
    operations, weights = work(prior, rows)
    least = max(operations / most.operations, weights / most.bytes)
    return [
        Row(f"a pass of {rows} rows", operations / 1e9, "{:.0f} G operations"),
        Row("a large matrix product here", most.operations / 1e9, "{:.0f} G operations/s"),
        Row("a large copy here, bytes read and written", most.bytes / 1e9, "{:.1f} GB/s"),
        Row("so a pass needs at least", 1000 * least, "{:.1f} ms"),
        Row("which is this share of the real one", 100 * least / seconds, "{:.0f} %"),
    ]


def probe_overhead(prior: UNetPrior, pairs: int) -> list[Row]:
    """Of a batch of two on the native latent, one row recorded, as LUSD does."""
    import torch

    from sdsedit.attention.probe import AttentionProbe
    from sdsedit.attention.words import find_words

    side = prior.native // prior.factor
    z = torch.randn(2, prior.channels, side, side, generator=torch.Generator().manual_seed(0))
    z, t = z.to(prior.device), torch.full((2,), 0.5, device=prior.device)
    text = prior.encode_text([TARGET, SOURCE])
    probe = AttentionProbe(find_words(prior.tokenize, TARGET, [WORD]).tokens, slice(0, 1))
    seconds: dict[str, list[float]] = {"plain": [], "probe": []}
    with torch.inference_mode():
        for _ in range(3):
            prior.predict(z, t, text, probe)
        for _ in range(pairs):
            for name, listener in (("plain", None), ("probe", probe)):
                start = time.perf_counter()
                eps = prior.predict(z, t, text, listener).eps
                float(eps[0, 0, 0, 0])  # waits for an accelerator
                seconds[name].append(time.perf_counter() - start)
    plain, listening = (statistics.median(seconds[name]) for name in ("plain", "probe"))
    return [
        Row("forward, batch 2, plain", 1000 * plain, "{:.1f} ms"),
        Row(f"the probe's overhead on it, {pairs} pairs", 100 * (listening / plain - 1), "{:.1f} %", 10.0),
        *floor(prior, 2, plain, rates(prior.device, prior.dtype)),
    ]


def against_reference(prior: UNetPrior, half: UNetPrior, steps: int, runs: int) -> tuple[list[Row], list[str]]:
    """The loop against benchmarks/reference_loop.py, on the same latent and prompts, in turns: a step of the reference
    in fp32, one under autocast, one of this project in fp32 and with bf16 weights (`half`). An edit is as many steps as
    each takes by default; the redrawing at the end, encoding and decoding are in ours and not in the reference's."""
    import torch

    from benchmarks import reference_loop
    from sdsedit.attention.words import find_words
    from sdsedit.edit import Edit, EditConfig, edit
    from sdsedit.io.images import read_picture

    image, request = read_picture(str(PICTURE)).tensor(), Edit(target=TARGET, source=SOURCE)
    tokens = list(find_words(prior.tokenize, TARGET, [WORD]).tokens)
    text = prior.encode_text([TARGET, SOURCE])
    with torch.no_grad():
        z_src = prior.encode(image)
    abar = prior.schedule.alphas_cumprod
    assert abar is not None
    given = (prior.unet, abar, z_src, text[0].embeds, text[1].embeds, tokens)
    seconds: dict[str, list[float]] = {"fp32": [], "autocast": [], "ours": [], "ours in bf16": []}
    rejected, passes = 0, []
    in_v = prior.schedule.prediction == "v_prediction"

    def count(*_: object) -> None:
        passes.append(1)

    handle = prior.unet.register_forward_pre_hook(count)
    edits: dict[str, list[float]] = {"lusd": [], "lusd-fast": []}
    calls = dict.fromkeys(edits, 0)
    for turn in range(runs):
        for name in ("fp32", "autocast"):
            cast = name == "autocast"
            _, took, again = reference_loop.lusd(*given, steps=steps, seed=turn, autocast=cast, predicts_v=in_v)
            seconds[name] += took[1:]
            rejected += again
        for name, model in (("ours", prior), ("ours in bf16", half)):
            ends: list[float] = []
            config = EditConfig(steps=steps, seed=turn, refine=0.0)
            edit(image, model, request, config, lambda _, ends=ends: ends.append(time.perf_counter()))
            seconds[name] += [b - a for a, b in pairwise(ends)]
        for name in edits:
            passes.clear()
            edits[name].append(edit(image, prior, request, EditConfig(method=name)).seconds)
            calls[name] = len(passes)
    handle.remove()
    each = {name: statistics.median(took) for name, took in seconds.items()}
    more = 1 + rejected / (2 * runs * steps)  # redraws are steps too
    fp32, autocast = 300 * each["fp32"] * more, 300 * each["autocast"] * more
    rows, lines = [], [
        "| loop | a step (s) | passes of the network | an edit (s) |",
        "|---|---|---|---|",
        f"| reference, fp32 | {each['fp32']:.3f} | 300 and redraws | {fp32:.1f} |",
        f"| reference, autocast to bf16 | {each['autocast']:.3f} | 300 and redraws | {autocast:.1f} |",
    ]  # fmt: skip
    for name, took in edits.items():
        step = f"{each['ours']:.3f}" if name == "lusd" else ""
        lines.append(f"| `{name}` | {step} | {calls[name]} | {statistics.median(took):.1f} |")
        what = f"an edit with `{name}`, times as fast as the faster reference's"
        gate = 3.0 if prior.device.type == "cuda" else 2.0
        rows.append(Row(what, min(fp32, autocast) / statistics.median(took), "{:.1f}", gate, least=True))
    lines.append(f"| `lusd` with bf16 weights | {each['ours in bf16']:.3f} | as `lusd` | |")
    rows.append(Row("a step, times as fast as the reference's, both fp32", each["fp32"] / each["ours"], "{:.2f}"))
    return rows, lines


@dataclass(frozen=True)
class Steps:
    """LUSD steps of a published configuration with random weights, at its own size."""

    name: str
    step: float  # seconds
    operations: float  # of a pass
    weights: float  # bytes
    reference: dict[str, float] = field(default_factory=dict)  # seconds of a step of the reference loop

    def cells(self, most: Rates) -> str:
        least = max(self.operations / most.operations, self.weights / most.bytes)
        loops = ", ".join(
            f"{took:.3g} s {name} ({took / self.step:.2f} times)" for name, took in self.reference.items()
        )
        return (
            f"| {self.name} | {self.step:.3g} | {1 / self.step:.3g} | {self.operations / 1e12:.2f} T | "
            f"{100 * least / self.step:.0f} % | {300 * self.step:.0f} | {loops} |"
        )


def true_size(name: str, device: torch.device, dtype: torch.dtype, steps: int, beside: bool) -> Steps:
    """A model's true configuration: `steps` LUSD steps after one that is not timed, in turns with the reference loop's
    where `beside`; medians. The reference has float32 weights, whatever ours are."""
    import copy

    import torch

    from benchmarks import reference_loop
    from benchmarks.backbones import blank_text, build
    from sdsedit.guidance import LUSD
    from sdsedit.guidance.base import Prompts, Step

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if beside else dtype)  # 32-bit weights of a large one are never made
    try:
        prior: Any = build(name, str(device), text=False)
    finally:
        torch.set_default_dtype(before)
    network = prior.unet if hasattr(prior, "unet") else prior.transformer
    if beside and dtype != torch.float32:
        prior.unet = copy.deepcopy(network).to(dtype)
    prior.dtype = dtype
    text = blank_text(prior, 2)
    side = prior.native // prior.factor
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, prior.channels, side, side, generator=generator).to(device)
    prompts = Prompts(text[0], text[1], text[1], text[1], (2,))
    seconds: dict[str, list[float]] = {"ours": []}
    method = LUSD(retries=0)
    for turn in range(steps + 1):
        step = Step(turn, 300, z, z, prompts, lambda: prior.schedule.draw(z, generator))
        began = time.perf_counter()
        with torch.inference_mode():
            float(method(prior, step).step.flatten()[0])  # waits for an accelerator
        seconds["ours"].append(time.perf_counter() - began)
        for cast in (False, True) if beside else ():
            _, took, _ = reference_loop.lusd(
                network, prior.schedule.alphas_cumprod, z, text[0].embeds.float(), text[1].embeds.float(), [2], 1,
                seed=turn, autocast=cast,
            )  # fmt: skip
            seconds.setdefault("under autocast" if cast else "in fp32", []).extend(took)
    each = {loop: statistics.median(took[1:]) for loop, took in seconds.items()}
    operations, weights = work(prior, 2)
    kind = str(dtype).removeprefix("torch.")
    return Steps(f"{name}, {prior.native} px, {kind}", each.pop("ours"), operations, weights, each)


def true_sizes(names: Sequence[str], device: torch.device, steps: int) -> list[str]:
    """Stable Diffusion 1.5 in fp32 and with 16-bit weights beside the reference, the others with 16-bit weights."""
    import torch

    lines = [
        f"True configurations with random weights, LUSD steps (median of {steps}), reference steps in turns with them:",
        "",
        "| model | a step (s) | steps a second | operations a pass | share of the floor | 300 steps (s) | reference |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        joint = name.startswith(("sd3", "flux"))  # whose activations overflow float16
        half = torch.float16 if device.type == "cuda" and not joint else torch.bfloat16
        for dtype in (torch.float32, half) if name == "sd15" else (half,):
            found = true_size(name, device, dtype, steps, name == "sd15")
            lines.append(found.cells(rates(device, dtype)))
            print(lines[-1], flush=True)
    return lines


def methods(prior: UNetPrior, steps: int) -> list[str]:
    """Markdown lines: seconds a step of each method, and of its default run."""
    from sdsedit.edit import Edit, EditConfig, edit
    from sdsedit.guidance import METHODS, configured
    from sdsedit.io.images import read_picture

    image, request = read_picture(str(PICTURE)).tensor(), Edit(target=TARGET, source=SOURCE)
    lines = ["| method | seconds a step | default steps | a default run (s) |", "|---|---|---|---|"]
    for name in METHODS:
        config = EditConfig(method=name, steps=steps + 1)
        ends: list[float] = []
        edit(image, prior, request, config, lambda _, ends=ends: ends.append(time.perf_counter()))
        each = statistics.median(b - a for a, b in pairwise(ends))
        default = configured(name, editing=prior.editing).steps
        lines.append(f"| {name} | {each:.3f} | {default} | {each * default:.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin", help="builtin, or a diffusers folder")
    parser.add_argument("--runs", type=int, default=3, help="of the edit and of the command")
    parser.add_argument("--pairs", type=int, default=40, help="of forwards, for the probe")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each method")
    parser.add_argument(
        "--true-size",
        nargs="*",
        metavar="NAME",
        help="of benchmarks/configs (default: sd15, which takes 10 GB)",
    )
    parser.add_argument("--true-steps", type=int, default=2, help="timed steps of each of those (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    model = args.model if args.model == "builtin" else str(Path(args.model).resolve())
    facts = machine()
    rows = start_up(args.runs) + command(model, args.runs)  # first: see command

    import torch

    from sdsedit.prior import UNetPrior, load_prior

    prior, half = load_prior(model), load_prior(model, dtype=torch.bfloat16)
    assert isinstance(prior, UNetPrior) and isinstance(half, UNetPrior), "the reference loop is written for a UNet"
    facts += [f"torch {torch.__version__}", f"{torch.get_num_threads()} threads", f"on {prior.device}"]
    rows += optimisation(prior, args.runs) + probe_overhead(prior, args.pairs)
    faster, loops = against_reference(prior, half, args.steps, args.runs)
    rows += faster
    lines = ["# Speed", "", f"`python -m benchmarks.speed`, model {prior.name}: {', '.join(facts)}.", ""]
    lines += ["| what | measured | allowed | met |", "|---|---|---|---|", *(row.cells() for row in rows)]
    lines += ["", f"Runs of the edit: {args.runs}; of each method, on the same picture, {args.steps} steps:", ""]
    lines += [*methods(prior, args.steps), ""]
    lines += [
        "Against a plain transcription of the reference loop (benchmarks/reference_loop.py: SGD on a parameter,",
        "explicit attention with stored maps, redraws, host reads), the same latent and prompts, steps in turns:",
        "",
        *loops,
        "",
    ]
    if args.true_size is not None:
        usual = ("sd15", "sdxl", "flux1-dev") if prior.device.type == "cuda" else ("sd15",)
        lines += [*true_sizes(args.true_size or usual, prior.device, args.true_steps), ""]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "speed.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
