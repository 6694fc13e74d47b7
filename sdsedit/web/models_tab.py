"""The Models tab: which models are here, their licences, and what they run on. It never downloads anything."""

from __future__ import annotations

import html
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdsedit.errors import printable
from sdsedit.known_models import KNOWN_MODELS, bytes_told, folder_size
from sdsedit.licences import FILE, Licences
from sdsedit.prior.load import ModelNotFound, builtin_path
from sdsedit.web.events import done, handler, on_press
from sdsedit.web.settings import Settings
from sdsedit.web.worker import Worker

ON_BUTTON = on_press("model")
_NOTE = (
    "This page never downloads a model. It works with the one that it was started with; to take another, get it as its "
    "card says and start the page with <code>python app.py --model NAME</code>."
)


@dataclass(frozen=True)
class Model:
    """A model that this page knows of."""

    id: str
    name: str
    what: str
    licence: str
    size: int  # bytes on the disk; 0: it is not here
    how: str  # to get it; "" for one that ships with sdsedit, or is somebody's own


class ModelsTab:
    """One page's Models tab; `tab` is the gr.Tab that it stands in."""

    def __init__(self, worker: Worker, settings: Settings, tab: Any) -> None:
        self.worker, self.settings = worker, settings
        self.licences = Licences(None if settings.history is None else settings.history / FILE)
        self._lay_out(tab)

    def _lay_out(self, tab: Any) -> None:
        import gradio as gr

        machine = gr.HTML(machine_line(self.worker.state, None), elem_id="models-machine")
        shown = gr.HTML(js_on_load=ON_BUTTON, elem_id="models-cards")
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        tab.select(handler(self.look), None, [machine, shown], **quiet)
        shown.select(handler(self.acknowledge, event=True), None, shown, **quiet)

    async def look(self, person: str) -> tuple[str, str]:
        """What there is now."""
        found = None
        if self.worker.state == "ready":
            found = await done(self.worker, self.worker.submit(person, lambda prior, job: _about(prior), quick=True))
        return machine_line(self.worker.state, found), self._cards()

    def acknowledge(self, person: str, said: dict[str, Any]) -> str:
        self.licences.acknowledge(str(said.get("model")))
        return self._cards()

    def _cards(self) -> str:
        return cards(models(self.settings.model), self.settings.model, self.licences.known())


def models(used: str) -> list[Model]:
    """The built-in model, the ones that people ask for, and the one in use."""
    found: list[Model] = []
    with suppress(ModelNotFound):
        what, licence = "A small model of emoji scenes, 128 pixels; ships with sdsedit.", "Apache-2.0, like sdsedit."
        found.append(Model("builtin", "Built-in model", what, licence, folder_size(builtin_path()), ""))
    for id, known in KNOWN_MODELS.items():
        found.append(Model(id, id.split("/")[-1], f"{known.what}.", known.licence, _cached(id), known.how))
    if used not in {model.id for model in found}:
        folder = Path(used)
        size = folder_size(folder) if folder.is_dir() else _cached(used)
        name = printable(folder.name, 80)
        found.insert(0, Model(used, name, "A model of your own.", "As its makers say.", size, ""))
    return found


def cards(found: list[Model], used: str, known: dict[str, dict[str, Any]]) -> str:
    """The models, the one in use first."""
    made = []
    for model in sorted(found, key=lambda model: (model.id != used, not model.size)):
        badges = ['<span class="badge here">in use</span>'] if model.id == used else []
        state = f"here, {bytes_told(model.size)}" if model.size else "not here"
        badges.append(f'<span class="badge{" here" if model.size else ""}">{state}</span>')
        lines = [
            f"<h3>{html.escape(model.name)}</h3>",
            f"<p>{' '.join(badges)}</p>",
            f"<p>{html.escape(model.what)}</p>",
            f"<p>Licence: {html.escape(model.licence)}</p>",
        ]
        if model.id in KNOWN_MODELS:
            lines += _licence(model, known.get(model.id))
        made.append(f'<article class="{"used" if model.id == used else ""}">{"".join(lines)}</article>')
    return f'<p class="hint" style="margin-bottom:14px">{_NOTE}</p><div class="models">{"".join(made)}</div>'


def _licence(model: Model, acknowledged: dict[str, Any] | None) -> list[str]:
    if acknowledged is None:
        none = model.licence.startswith("none")
        say = (
            "Ask first: without a licence there is no permission."
            if none
            else "Read it on the model's page before you use the model."
        )
        press = "I have understood" if none else "I have read the licence"
        button = f'<button type="button" class="chip" data-model="{html.escape(model.id)}">{press}</button>'
        return [f'<p class="hint">{say}</p>', button]
    when = acknowledged.get("acknowledged")
    day = time.strftime("%d %b %Y", time.localtime(when)) if isinstance(when, int | float) else "before"
    lines = [f'<p class="hint">Licence acknowledged {day.lstrip("0")}.</p>']
    if not model.size:
        command = model.how.startswith("hf ")
        how = f"<code>{html.escape(model.how)}</code>" if command else html.escape(model.how)
        lines.append(f'<p class="hint">{"To get it: " if command else ""}{how}</p>')
    return lines


def machine_line(state: str, found: dict[str, Any] | None) -> str:
    """What the model runs on, in plain words."""
    if found is None:
        line = {
            "loading": "The model is loading.",
            "ready": "The model is ready.",
            "closing": "The page is closing.",
        }.get(state, state)
        return f'<p class="notes" role="status">{html.escape(line)}</p>'
    parts = [f"Runs on {found['device']}."]
    if found["model"]:
        parts.append(f"The model takes {bytes_told(found['model'])} of memory.")
    if found["memory"]:
        parts.append(
            f"This page has used {bytes_told(found['memory'])} at most so far, of {bytes_told(found['whole'])}."
        )
    if found["gpu"]:
        parts.append(f"On the GPU it has used {bytes_told(found['gpu'])} at most, of {bytes_told(found['gpu_whole'])}.")
    return f'<p class="notes" role="status">{html.escape(" ".join(parts))}</p>'


def _about(prior: Any) -> dict[str, Any]:
    """Device and memory; on the worker."""
    import torch

    from sdsedit.doctor import peak_memory

    found: dict[str, Any] = {"device": _device(prior.device), "memory": peak_memory(), "gpu": 0, "gpu_whole": 0}
    found["whole"] = _main_memory()
    if not found["whole"]:
        found["memory"] = 0
    parts = [each for each in vars(prior).values() if isinstance(each, torch.nn.Module)]
    weights = {id(tensor): tensor.numel() * tensor.element_size() for part in parts for tensor in part.parameters()}
    found["model"] = sum(weights.values())
    if prior.device.type == "cuda":
        found["gpu"] = torch.cuda.max_memory_allocated(prior.device)
        found["gpu_whole"] = torch.cuda.get_device_properties(prior.device).total_memory
    return found


def _device(device: Any) -> str:
    import torch

    if device.type == "cuda":
        return f"the GPU {torch.cuda.get_device_name(device)}"
    if device.type == "mps":
        return "the GPU of this Mac"
    cores = os.cpu_count() or 1
    return f"the processor ({cores} core{'' if cores == 1 else 's'}), without a GPU"


def _main_memory() -> int:
    """Bytes of this machine; 0: the system does not say."""
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0


def _cached(id: str) -> int:
    """Bytes of a hub model in the local cache, 0 if it is not there; asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    model, _, revision = id.partition("@")
    try:
        found = try_to_load_from_cache(model, "model_index.json", revision=revision or None)
    except ValueError:  # no name of a hub model
        return 0
    return folder_size(Path(found).parent) if isinstance(found, str) else 0
