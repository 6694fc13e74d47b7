"""What it costs to read somebody's scene in a process of its own: `read_bounded` against `read`, medians.

    python benchmarks/readers.py [--gaussians 420000] [--times 9] [--folder DIR]

Files of one made-up scene with all SH; the two are timed in turn, on files that are in the system's cache. `alone` is
the least such a process costs: its start, and a scene of one Gaussian.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sdsedit.io.splats import Splats, encode, read, read_bounded

KINDS = ("ply", "compressed.ply", "spz")


def scene(count: int) -> Splats:
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    extra = {name: np.zeros(count, np.float32) for name in ("nx", "ny", "nz")}
    return Splats(
        normal(count, 3), normal(count, 4), normal(count, 3) - 5, normal(count), normal(count, 16, 3) / 9, extra
    )


def seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gaussians", type=int, default=420_000, help="420000 are 100 MB of .ply")
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--folder", help="where the files are written; else a temporary one")
    arguments = parser.parse_args(argv)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {arguments.times}, milliseconds\n")
    print("| file | MB | here | apart | ratio |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for count, kinds in ((1, ("ply",)), (arguments.gaussians, KINDS)):
            splats = scene(count)
            for kind in kinds:
                path = Path(folder) / f"a.{kind}"
                path.write_bytes(encode(splats, path.name))
                here, apart = [], []
                for _ in range(arguments.times):
                    here.append(seconds(lambda path=path: read(path)))
                    apart.append(seconds(lambda path=path: read_bounded(path)))
                a, b = (1000 * statistics.median(each) for each in (here, apart))
                name = "alone" if count == 1 else f".{kind}"
                print(f"| {name} | {path.stat().st_size / 1e6:.1f} | {a:.0f} | {b:.0f} | {b / a:.2f} |", flush=True)


if __name__ == "__main__":
    main()
