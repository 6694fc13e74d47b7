"""Score distillation: what should change. One file a method; METHODS names them for the command line and the web
page."""

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

__all__ = ["CSD", "DDS", "LUSD", "METHODS", "NFSD", "PDS", "SBP", "SDS", "SSD"]
