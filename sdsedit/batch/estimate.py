"""How long a batch will take: from jobs that this folder has done already, else from a probe of the network's speed.

The probe loads no weights: a network of the model's shape, all zeros, is timed for a pass or two on the device that
would do the work. A job's time is then its passes. For pictures that is nearly exact; sketches, drawings and scenes
also render, which is counted as passes at the rate that the built-in model has on a CPU, so that theirs is a guess
within a factor of about two.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdsedit.batch.inputs import Planned, model_folder
from sdsedit.model_options import ModelOptions

# Rows of a step, in passes of two rows, as each method's docstring says; the way back costs two there.
_STEP = {
    "lusd": 1.0, "dds": 2.0, "flowedit": 2.0, "cds": 3.0, "ids": 11.0, "pds": 2.0, "ssd": 1.5, "ism": 3.5, "sds": 1.0,
    "sbp": 1.5, "nfsd": 1.5, "csd": 1.5, "vsd": 3.0, "lusd-fast": 1.0,
}  # fmt: skip
_USUAL_STEPS = 200  # where the model does not say
_FLOW_STEPS = 33  # FlowEdit's own
_REFINE = 12
_BESIDE = 4  # the autoencoder, there and back
_SKETCH = 3.0  # passes that a step of a sketch costs; likewise
_SVG = 3.0
_SPLATS = 12.0
_STYLE = {"input": 200, "texture": 300, "prompt": 50}  # steps where neither the job nor the model says
_SPLAT_STEPS = 150
_MOST_BYTES = 8 * 2**30  # of a network that is timed on a CPU


@dataclass(frozen=True)
class Estimate:
    seconds: float | None  # of all jobs; None: it cannot be told
    because: str  # one sentence


def estimate(
    planned: Sequence[Planned], pace: Mapping[tuple[str, str], tuple[int, float]], workers: int, device: str | None,
    threads: int | None = None,
) -> Estimate:  # fmt: skip
    """pace: as `Store.pace` gives it. `threads`: of each worker on a CPU."""
    if not planned:
        return Estimate(0.0, "nothing is left to do")
    total, known, passes = 0.0, 0, {}
    for each in planned:
        seen = pace.get((each.job.kind, each.model))
        if seen:
            total += seen[1]
            known += 1
        else:
            passes.setdefault(ModelOptions.parse(each.model).name, []).append(passes_of(each))
    said = [f"{known} like those that this folder has done"] if known else []
    for model, counts in passes.items():
        seconds = probe(model, device, threads)
        if seconds is None:
            return Estimate(None, f"{Path(model).name} is too large to be timed here without its weights")
        total += seconds * sum(counts)
        said.append(f"a pass of {Path(model).name} takes {1000 * seconds:.0f} ms here")
    return Estimate(total / workers, ", ".join(said))


def passes_of(planned: Planned) -> float:
    """Forward passes of two rows that a job takes, or what costs as much."""
    job, model = planned.job, ModelOptions.parse(planned.model).name
    own = _editing(model)
    given = job.settings
    if job.kind == "sketch":
        return _SKETCH * given["steps"] + 40
    if job.kind == "style":
        what = next(each for each in _STYLE if (each == "input" and job.input) or given.get(each))
        rows = (1 + len(job.references)) * (4 if what == "prompt" else 1)  # sampling: some steps of it in each
        return (given["steps"] or _STYLE[what]) * (0.5 + 1.5 * rows) + _BESIDE  # there and back again
    method = given["method"]
    usual = _FLOW_STEPS if method == "flowedit" else _USUAL_STEPS
    steps = given["steps"] or own.get(method, {}).get("steps", usual)
    picture = steps * _STEP[method] + _REFINE + _BESIDE
    if job.kind == "svg":
        return picture + _SVG * (given["steps"] or 60)
    if job.kind == "splats":
        return _SPLATS * (given["steps"] or _SPLAT_STEPS) + given["views"] * 30
    scale = (given["size"] / _native(model)) ** 2 if given["size"] else 1.0
    return picture * scale


def probe(model: str, device: str | None = None, threads: int | None = None) -> float | None:
    """Seconds of a forward pass of two rows at the model's own size; None: the network is too large to be tried."""
    import torch
    from diffusers import UNet2DConditionModel

    from sdsedit.batch.local import quiet

    quiet()
    folder = model_folder(model)
    if folder is None or not (folder / "unet" / "config.json").is_file():
        return None
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings: Any = UNet2DConditionModel.load_config(folder / "unet")
    with torch.device("meta"):
        network: Any = UNet2DConditionModel.from_config(settings)
    if where.type == "cpu" and 4 * sum(each.numel() for each in network.parameters()) > _MOST_BYTES:
        return None
    dtype = torch.float16 if where.type == "cuda" else torch.float32
    network = network.to(dtype).to_empty(device=where).eval().requires_grad_(False)
    for each in network.parameters():
        each.zero_()
    net = network.config
    side = net.sample_size if isinstance(net.sample_size, int) else max(net.sample_size)
    z = torch.randn(2, net.in_channels, side, side, device=where, dtype=dtype)
    text = torch.randn(2, 77, net.cross_attention_dim, device=where, dtype=dtype)
    added = None
    if net.addition_embed_type == "text_time":
        width = net.projection_class_embeddings_input_dim - 6 * net.addition_time_embed_dim
        added = {"text_embeds": text.new_zeros(2, width), "time_ids": text.new_zeros(2, 6)}
    before = torch.get_num_threads()
    try:
        if threads:
            torch.set_num_threads(threads)
        seconds = []
        for _ in range(4):
            began = time.perf_counter()
            with torch.inference_mode():
                network(z, torch.tensor(500, device=where), text, added_cond_kwargs=added, return_dict=False)[
                    0
                ].sum().item()
            seconds.append(time.perf_counter() - began)
            if sum(seconds) > 20:
                break
    finally:
        torch.set_num_threads(before)
    return sorted(seconds[1:] or seconds)[len(seconds[1:]) // 2]


def spell(seconds: float) -> str:
    """About how long, for a person: "40 s", "3 min", "2 h 10 min"."""
    if seconds < 100:
        return f"{max(1, math.ceil(seconds))} s"
    minutes = math.ceil(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.1f} days"


def _editing(model: str) -> dict[str, Any]:
    from sdsedit.prior.load import editing_settings

    folder = model_folder(model)
    return editing_settings(folder) if folder else {}


def _native(model: str) -> int:
    """The model's own side in pixels."""
    folder = model_folder(model)
    try:
        assert folder is not None
        unet = json.loads((folder / "unet" / "config.json").read_text("utf-8"))
        vae = json.loads((folder / "vae" / "config.json").read_text("utf-8"))
        side = unet["sample_size"]
        return (side if isinstance(side, int) else max(side)) * 2 ** (len(vae["block_out_channels"]) - 1)
    except (AssertionError, OSError, ValueError, KeyError, TypeError):
        return 512
