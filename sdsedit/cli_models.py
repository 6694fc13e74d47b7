"""`sdsedit models`: what is here and what is known; `sdsedit models add ID`: fetch one whose licence has been read."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdsedit import errors
from sdsedit.errors import InputRefused, printable
from sdsedit.known_models import KNOWN_MODELS, bytes_told, folder_size

if TYPE_CHECKING:
    from sdsedit.licences import Licences

_OTHERS = "Any other of these families in diffusers format: --model FOLDER, ID or ID@REVISION."
_NO_LICENCE = "none stated on its page: without one there is no permission, so ask its makers first"


def add_to(command: Callable[[str, Callable[..., int], str], argparse.ArgumentParser]) -> None:
    """Add the commands to the command line; `command` makes one of a name, what runs it, and a sentence."""
    for name in ("models", "models list"):
        listing = command(name, tell, "List models: what is here, their licences, how to get them.")
        _add_history(listing)
    add = command("models add", run, "Fetch a model of the hub, or take a folder, after its licence has been read.")
    add.add_argument("model", metavar="ID", help="org/name, org/name@REVISION, or a diffusers folder")
    add.add_argument("--yes", action="store_true", help="I have read the licence: do not ask")
    _add_history(add)


def _add_history(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--history", type=Path, metavar="DIR", help="the page's folder, where licences are recorded (default: its own)"
    )


# ---- sdsedit models


def tell(arguments: argparse.Namespace, interrupts: Any) -> int:
    from sdsedit.io.record import model_revision
    from sdsedit.prior.load import ModelNotFound, builtin_path

    try:
        state = f"here, {bytes_told(folder_size(builtin_path()))}"
    except ModelNotFound:
        state = "missing from this copy of sdsedit: reinstall it"
    print("builtin\n  What:    a small model of emoji scenes, 128 px, ships with sdsedit")
    print(f"  Licence: see its model card\n  State:   {state}")
    taken = _licences(arguments).known()
    own = {name: entry for name, entry in taken.items() if name not in KNOWN_MODELS}
    for name, known in KNOWN_MODELS.items():
        print(f"{name}\n  What:    {known.what}\n  Licence: {known.licence}{_acknowledged(taken.get(name))}")
        print(f"  State:   {_state(model_revision(name), taken.get(name), known.how)}")
    for name, entry in own.items():
        here = model_revision(name) if not _is_folder(name) or Path(name).is_dir() else None
        how = "its folder is gone" if _is_folder(name) else f"sdsedit models add {name}"
        print(f"{printable(name)}\n  What:    taken with `sdsedit models add`")
        print(f"  Licence: {printable(str(entry.get('licence')))}{_acknowledged(entry)}")
        print(f"  State:   {_state(here, entry, how)}")
    print(_OTHERS)
    return errors.OK


def _acknowledged(entry: dict[str, Any] | None) -> str:
    return "" if entry is None else " (acknowledged)"


def _state(here: str | None, entry: dict[str, Any] | None, how: str) -> str:
    """Whether a model is here, at which revision, and whether that is the one that was taken."""
    taken = str((entry or {}).get("revision") or "")
    if not here:
        return f"not here; {how}"
    if not taken:
        return f"here, revision {here}"
    if here == taken:
        return f"here, revision {here}, pinned"
    return f"here, revision {here}; the one that was taken is {taken}: --model ID@{taken} is that one"


# ---- sdsedit models add


def run(arguments: argparse.Namespace, interrupts: Any) -> int:
    """Show what a model is, ask, record the licence, fetch."""
    given = str(arguments.model)
    if given == "builtin":
        raise InputRefused("The built-in model is here already.")
    if _is_folder(given) or (Path(given).is_dir() and "@" not in given):
        return _add_folder(arguments, Path(given).expanduser())
    return _add_hub(arguments, given)


def _add_hub(arguments: argparse.Namespace, given: str) -> int:
    import torch

    from sdsedit.prior.load import ModelNotFound, fetch, look_up, parameters, parse_spec

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ModelNotFound(f"{printable(given)} cannot be fetched while HF_HUB_OFFLINE is set: unset it first.")
    model_id, revision = parse_spec(given)
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    offer = look_up(model_id, revision, dtype, sizes=True)
    known = KNOWN_MODELS.get(model_id)
    licence = known.licence if known else offer.licence or _NO_LICENCE
    print(f"{model_id}\n  What:     {known.what if known else 'a model of the hub'}")
    print(f"  Licence:  {printable(licence)}; its text: https://huggingface.co/{model_id}")
    print(f"  Revision: {offer.commit}")
    print(
        f"  Download: {bytes_told(sum(offer.files.values()))} in {len(offer.files)} files, weights as safetensors only"
    )
    print(f"  Memory:   {_memory(parameters(offer))}", flush=True)
    _agree(arguments, "Have you read the licence, and shall the model be fetched?")
    licences = _licences(arguments)
    licences.acknowledge(model_id, licence)
    folder = fetch(offer)
    if folder.name != offer.commit:
        raise InputRefused(f"{given} was changed on the hub while it was being fetched: run the command again.")
    licences.acknowledge(model_id, licence, offer.commit)
    print(f"Fetched: {bytes_told(folder_size(folder))}. Try it: sdsedit doctor --model {given}")
    return errors.OK


def _add_folder(arguments: argparse.Namespace, folder: Path) -> int:
    from sdsedit.io.record import model_revision
    from sdsedit.prior.load import check_folder

    check_folder(folder)
    spec = str(folder.resolve())
    licence = _card_licence(folder) or "none stated in its README.md: ask its makers before you rely on it"
    revision = model_revision(spec)
    print(f"{printable(folder.name)}\n  What:     a folder on this machine; nothing is fetched")
    print(
        f"  Licence:  {printable(licence)}\n  Revision: {revision}\n  Size:     {bytes_told(folder_size(folder))}",
        flush=True,
    )
    _agree(arguments, "Have you read the licence, and shall the folder be listed?")
    _licences(arguments).acknowledge(spec, licence, revision)
    print(f"Listed. Try it: sdsedit doctor --model {printable(folder.name)}")
    return errors.OK


def _agree(arguments: argparse.Namespace, question: str) -> None:
    """InputRefused: nobody said yes."""
    if arguments.yes:
        return
    if not sys.stdin.isatty():
        raise InputRefused("Nothing was done, for nobody could be asked: read the licence, then add --yes.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise InputRefused("Nothing was done: the licence was not acknowledged.")


def _memory(counts: dict[str, int]) -> str:
    """Of the weights; the autoencoder is always kept in float32."""
    whole = sum(counts.values())
    if not whole:
        return "unknown until it is fetched"
    half = 2 * (whole - counts.get("vae", 0)) + 4 * counts.get("vae", 0)
    return f"{bytes_told(4 * whole)} for its weights on a CPU, {bytes_told(half)} on a GPU; pictures come on top"


def _licences(arguments: argparse.Namespace) -> Licences:
    from sdsedit.licences import FILE, Licences, default_history

    return Licences((arguments.history or default_history()) / FILE)


def _card_licence(folder: Path) -> str | None:
    """The licence in the front matter of a folder's README.md."""
    try:
        text = (folder / "README.md").read_text("utf-8", errors="replace")[:20_000]
    except OSError:
        return None
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*(\S.*?)\s*$", front[1], re.MULTILINE) if front else None
    return found[1].strip("\"'") if found else None


def _is_folder(name: str) -> bool:
    """Whether a name can only be a folder's."""
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
