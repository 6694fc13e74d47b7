"""Frozen text-to-image models, one convention out: the predicted noise in fp32, without classifier-free guidance."""

from sdsedit.prior.base import Prediction, Prior, Probe, Text, Tokens, cfg
from sdsedit.prior.load import ModelNotFound, builtin_path, load_prior
from sdsedit.prior.mmdit import MMDiTPrior
from sdsedit.prior.unet import UNetPrior

__all__ = [
    "MMDiTPrior",
    "ModelNotFound",
    "Prediction",
    "Prior",
    "Probe",
    "Text",
    "Tokens",
    "UNetPrior",
    "builtin_path",
    "cfg",
    "load_prior",
]
