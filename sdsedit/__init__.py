"""Edit pictures with words: score distillation says how a picture should change, attention says where.

The names below are loaded when they are first used, so that `import sdsedit` stays quick and asks for no torch:

    from sdsedit import Edit, EditConfig, load_prior, read_picture
    from sdsedit.edit import edit          # the loop itself; `sdsedit.edit` is the module that holds it

    picture = read_picture("cat.png")
    result = edit(picture.tensor(), load_prior("builtin"), Edit(target="a cat wearing a crown on grass"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sdsedit._version import __version__

if TYPE_CHECKING:
    from sdsedit.edit import EditResult, StepReport
    from sdsedit.errors import InputRefused
    from sdsedit.guidance import METHODS
    from sdsedit.guidance.lusd import LUSD
    from sdsedit.io.images import Picture, read_mask, read_picture
    from sdsedit.io.splats import Splats
    from sdsedit.io.splats import read as read_splats
    from sdsedit.io.splats import write as write_splats
    from sdsedit.prior.load import ModelNotFound, load_prior
    from sdsedit.request import Edit, EditConfig
    from sdsedit.splats.change import SplatConfig, SplatResult

_HOMES = {
    "Edit": "sdsedit.request",
    "EditConfig": "sdsedit.request",
    "EditResult": "sdsedit.edit",
    "StepReport": "sdsedit.edit",
    "InputRefused": "sdsedit.errors",
    "METHODS": "sdsedit.guidance",
    "LUSD": "sdsedit.guidance.lusd",
    "Picture": "sdsedit.io.images",
    "read_mask": "sdsedit.io.images",
    "read_picture": "sdsedit.io.images",
    "ModelNotFound": "sdsedit.prior.load",
    "load_prior": "sdsedit.prior.load",
    "SplatConfig": "sdsedit.splats.change",
    "SplatResult": "sdsedit.splats.change",
    "Splats": "sdsedit.io.splats",
    "read_splats": "sdsedit.io.splats",
    "write_splats": "sdsedit.io.splats",
}
_NAMES = {"read_splats": "read", "write_splats": "write"}  # whose name at home is another

__all__ = [
    "LUSD",
    "METHODS",
    "Edit",
    "EditConfig",
    "EditResult",
    "InputRefused",
    "ModelNotFound",
    "Picture",
    "SplatConfig",
    "SplatResult",
    "Splats",
    "StepReport",
    "__version__",
    "load_prior",
    "read_mask",
    "read_picture",
    "read_splats",
    "write_splats",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sdsedit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), _NAMES.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
