"""Score distillation: what should change. One file a method; METHODS names them for the command line and the web
page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

from sdsedit.errors import InputRefused, printable
from sdsedit.guidance.base import Guidance
from sdsedit.guidance.cds import CDS
from sdsedit.guidance.csd import CSD
from sdsedit.guidance.dds import DDS
from sdsedit.guidance.flowedit import FlowEdit
from sdsedit.guidance.ids import IDS
from sdsedit.guidance.ism import ISM
from sdsedit.guidance.lusd import LUSD, FastLUSD
from sdsedit.guidance.nfsd import NFSD
from sdsedit.guidance.pds import PDS
from sdsedit.guidance.sbp import SBP
from sdsedit.guidance.sds import SDS
from sdsedit.guidance.ssd import SSD
from sdsedit.guidance.vsd import VSD

METHODS = {
    "lusd": LUSD,
    "dds": DDS,
    "flowedit": FlowEdit,
    "cds": CDS,
    "ids": IDS,
    "pds": PDS,
    "ssd": SSD,
    "ism": ISM,
    "sds": SDS,
    "sbp": SBP,
    "nfsd": NFSD,
    "csd": CSD,
    "vsd": VSD,
    "lusd-fast": FastLUSD,
}
"""Name -> dataclass of hyperparameters; METHODS["dds"]() is the method with its defaults."""

MIN_STRENGTH, MAX_STRENGTH = 0.1, 10.0

__all__ = [
    "CDS",
    "CSD",
    "DDS",
    "IDS",
    "ISM",
    "LUSD",
    "METHODS",
    "NFSD",
    "PDS",
    "SBP",
    "SDS",
    "SSD",
    "VSD",
    "FastLUSD",
    "FlowEdit",
    "configured",
]


def configured(
    method: str | Guidance,
    strength: float = 1.0,
    editing: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Any:
    """The method that a name stands for, its step sizes multiplied by `strength`, 0.1 to 10.

    A name means the method's defaults, over which go those that suit the model: `editing` is a prior's, name ->
    settings. A method that is given whole is taken as it is. Raises InputRefused for an unknown name, a setting that
    the method lacks, or another strength.
    """
    if isinstance(method, str):
        if method not in METHODS:
            known = ", ".join(METHODS)
            raise InputRefused(f"method is {printable(repr(method), 40)}; it must be one of {known}.")
        suited = editing.get(method, {})
        unknown = set(suited) - {each.name for each in fields(METHODS[method])}
        if unknown:
            raise InputRefused(f"The model's editing.json has settings that {method} lacks: {', '.join(unknown)}.")
        chosen: Any = METHODS[method](**suited)
    else:
        chosen = method
    if not MIN_STRENGTH <= strength <= MAX_STRENGTH:
        raise InputRefused(f"strength is {strength}; it must be a number from {MIN_STRENGTH:g} to {MAX_STRENGTH:g}.")
    steps = [each.name for each in fields(chosen) if each.name in ("step_size", "first_step_size")]
    if strength == 1:
        return chosen
    return replace(chosen, **{name: getattr(chosen, name) * strength for name in steps})
