"""Take the pictures of the built-in model's world out of the icon packages that registries ship.

The packages are `@iconify-json/fluent-emoji-flat` (MIT), `@iconify-json/noto` and `@iconify-json/noto-v1` (Apache-2.0);
get them with `npm pack NAME` and unpack each.  The SVG files that the world needs are already in `assets/art`, so this
runs only when the world is widened:

    python -m training.art --family fluent-flat --package path/to/unpacked/package
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

ART = Path(__file__).resolve().parents[1] / "assets" / "art"

# word of the caption -> icon name; the three families use the same names.
NOUNS = {
    "cat": "cat-face",
    "dog": "dog-face",
    "bear": "bear",
    "panda": "panda",
    "fox": "fox",
    "rabbit": "rabbit-face",
    "pig": "pig-face",
    "cow": "cow-face",
    "tiger": "tiger-face",
    "lion": "lion",
    "frog": "frog",
    "monkey": "monkey-face",
    "mouse": "mouse-face",
    "koala": "koala",
    "penguin": "penguin",
    "owl": "owl",
    "wolf": "wolf",
    "chick": "front-facing-baby-chick",
    "ghost": "ghost",
    "alien": "alien",
    "robot": "robot",
    "pumpkin": "jack-o-lantern",
    "apple": "red-apple",
    "pear": "pear",
    "balloon": "balloon",
    "cup": "cup-with-straw",
    "cactus": "cactus",
    "mushroom": "mushroom",
}
ACCESSORIES = {
    "crown": "crown",
    "top hat": "top-hat",
    "sunglasses": "sunglasses",
    "bow": "ribbon",
    "cap": "billed-cap",
    "flower": "cherry-blossom",
}


def svg_text(icons: dict, name: str) -> str | None:
    """The SVG document of icon `name` in an Iconify collection (parsed icons.json); None when it has no such icon."""
    icon = icons["icons"].get(name)
    if icon is None:
        alias = icons.get("aliases", {}).get(name)
        return svg_text(icons, alias["parent"]) if alias else None
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} viewBox="0 0 {width} {height}">{icon["body"]}</svg>\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", required=True, help="name of the folder under assets/art")
    parser.add_argument("--package", required=True, type=Path, help="the unpacked npm package, with its icons.json")
    parser.add_argument(
        "--all", type=Path, help="also write every icon of the family into this folder (autoencoder training)"
    )
    args = parser.parse_args()
    icons = json.loads((args.package / "icons.json").read_text())
    folder = ART / args.family
    folder.mkdir(parents=True, exist_ok=True)
    for name in (NOUNS | ACCESSORIES).values():
        text = svg_text(icons, name)
        if text is None:
            print(f"{args.family} has no {name}")
        else:
            (folder / f"{name}.svg").write_text(text)
    if args.all:
        args.all.mkdir(parents=True, exist_ok=True)
        for name in icons["icons"]:
            (args.all / f"{name}.svg").write_text(svg_text(icons, name) or "")
    print(f"{len(list(folder.glob('*.svg')))} pictures in {folder.name}")


if __name__ == "__main__":
    main()
