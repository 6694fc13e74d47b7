"""Score distillation: what should change. One file a method; METHODS names them for the command line and the web
page."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from sdsedit.errors import InputRefused
from sdsedit.guidance.csd import CSD
from sdsedit.guidance.dds import DDS
from sdsedit.guidance.lusd import LUSD
from sdsedit.guidance.nfsd import NFSD
from sdsedit.guidance.pds import PDS
from sdsedit.guidance.sbp import SBP
from sdsedit.guidance.sds import SDS
from sdsedit.guidance.ssd import SSD

METHODS = {"lusd": LUSD, "dds": DDS, "pds": PDS, "ssd": SSD, "sds": SDS, "sbp": SBP, "nfsd": NFSD, "csd": CSD}
"""Name -> dataclass of hyperparameters; METHODS["dds"]() is the method with its defaults."""

MIN_STRENGTH, MAX_STRENGTH = 0.1, 10.0

__all__ = ["CSD", "DDS", "LUSD", "METHODS", "NFSD", "PDS", "SBP", "SDS", "SSD", "stronger"]


def stronger(method: Any, strength: float) -> Any:
    """The method with its step sizes multiplied by `strength`, 0.1 to 10. Raises InputRefused for another strength."""
    if not MIN_STRENGTH <= strength <= MAX_STRENGTH:
        raise InputRefused(f"strength is {strength}; it must be a number from {MIN_STRENGTH:g} to {MAX_STRENGTH:g}.")
    steps = [each.name for each in fields(method) if each.name in ("step_size", "first_step_size")]
    return replace(method, **{name: getattr(method, name) * strength for name in steps})
