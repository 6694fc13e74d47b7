"""Draw the example pictures of assets/examples; each file's name is what it shows.

python -m training.examples
"""

from __future__ import annotations

from PIL import Image

from .art import ART
from .scenes import Scene, render

EXAMPLES = {
    "cat": Scene("cat", None, None, "grass", 64, 76, 96, False, 11),
    "dog": Scene("dog", None, None, "sand", 62, 76, 96, False, 12),
    "panda": Scene("panda", None, None, "snow", 65, 75, 94, False, 13),
    "owl": Scene("owl", None, None, "night", 64, 76, 96, False, 14),
    "apple": Scene("apple", None, None, "table", 64, 77, 92, False, 15),
    "frog": Scene("frog", None, "crown", "white", 64, 77, 94, False, 16),
}


def main() -> None:
    folder = ART.parent / "examples"
    folder.mkdir(exist_ok=True)
    for name, scene in EXAMPLES.items():
        Image.fromarray(render(scene).image).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
