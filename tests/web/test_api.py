"""The page's functions through the real `gradio_client`, and bad input through the same door.

The numbers are those of the table of cases: 1-5 pictures, 14 masks, 15 prompts, 16 numbers, 20 addresses.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from sdsedit.io.images import read_picture
from sdsedit.io.record import read_recipe

if TYPE_CHECKING:
    from gradio_client import Client

pytest.importorskip("gradio_client", reason="the page needs gradio: pip install -c constraints.txt -e '.[web]'")

ROOT = Path(__file__).resolve().parents[2]
CAT = ROOT / "assets" / "examples" / "cat.png"


@pytest.fixture(scope="module")
def client(page: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    from gradio_client import Client

    return Client(page, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the cat in it, the current one."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(CAT, "cat.png")
    return tmp_path


def test_edit_picture(client: Client):
    from gradio_client import handle_file

    job = client.submit(
        handle_file(str(CAT)), "a cat on grass", "a cat wearing a crown on grass", "", None, "lusd", 1.0, 0,
        api_name="/edit_picture",
    )  # fmt: skip
    path, recipe = job.result(timeout=300)
    before, after = read_picture(CAT), read_picture(path)
    assert Path(path).name == "cat-edited.png" and after.size == before.size
    assert read_recipe(Path(path)) == recipe
    assert recipe["result"]["words"] == ["crown"] and recipe["input"]["sha256"] == before.sha256
    share = (before.rgb == after.rgb).all(-1).mean()
    assert 0.5 < share < 1 and recipe["result"]["kept_pixels"] <= share * before.rgb[..., 0].size


def test_a_look_is_taken_along(client: Client):
    from gradio_client import handle_file

    given: dict[str, Any] = {"method": "dds", "steps": 1, "api_name": "/edit_picture"}
    looks = [handle_file(str(ROOT / "assets" / "styles" / f"{name}.png")) for name in ("mosaic", "dots")]
    _, recipe = client.predict(
        handle_file(str(CAT)), "a cat", "a cat wearing a hat", references=looks, style_weight=1.5, **given
    )
    assert [each["name"] for each in recipe["references"]] == ["mosaic.png", "dots.png"]
    assert recipe["style_weight"] == 1.5
    with pytest.raises(Exception, match="At most 8 looks can be mixed here; 9 are given"):
        client.predict(handle_file(str(CAT)), "a cat", "a cat wearing a hat", references=looks[:1] * 9, **given)


def test_heat_map(client: Client):
    from gradio_client import handle_file

    path = client.predict(handle_file(str(CAT)), "a cat wearing a crown on grass", "crown", api_name="/heat_map")
    assert read_picture(path).size == (128, 128)


def test_the_functions_are_described(client: Client):
    described: Any = client.view_api(return_format="dict")
    assert {"/edit_picture", "/heat_map"} < set(described["named_endpoints"])
    names = [each["parameter_name"] for each in described["named_endpoints"]["/edit_picture"]["parameters"]]
    usual = ["picture", "source", "target", "words", "mask", "method", "strength", "seed", "model", "steps"]
    assert names == [*usual, "references", "style_weight"]


# ---- bad input


def many_pixels(side: int) -> Callable[[], str]:
    def make() -> str:
        Image.new("1", (side, side)).save("wide.png")
        return "wide.png"

    return make


def written(name: str, data: bytes) -> Callable[[], str]:
    def make() -> str:
        Path(name).write_bytes(data)
        return name

    return make


def cut_short() -> str:
    Path("cut.png").write_bytes(CAT.read_bytes()[:900])
    return "cut.png"


def renamed() -> str:
    shutil.copy("cat.png", "cat.jpg")
    return "cat.jpg"


def grey(name: str, size: tuple[int, int], level: int) -> Callable[[], str]:
    def make() -> str:
        Image.new("L", size, level).save(name)
        return name

    return make


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("2 more than the limit", {"picture": many_pixels(8_100)}, "64 megapixels"),
    ("2 144 megapixels", {"picture": many_pixels(12_000)}, "64 megapixels"),
    ("2 more than the page takes", {"picture": many_pixels(4_100)}, "16 megapixels"),
    ("3 cut short", {"picture": cut_short}, "cut.png is damaged"),
    ("3 wrong extension", {"picture": renamed}, "cat.jpg is a PNG picture under another name"),
    ("4 FITS", {"picture": written("a.fits", b"SIMPLE  =" + bytes(4000))}, "a.fits is of a kind that is not read"),
    ("4 PSD", {"picture": written("a.png", b"8BPS\0\1" + bytes(4000))}, "a.png is of a kind that is not read"),
    ("4 PDF", {"picture": written("a.pdf", b"%PDF-1.7\n" + bytes(4000))}, "a.pdf is of a kind that is not read"),
    ("4 EPS", {"picture": written("a.eps", b"%!PS-Adobe-3.0" + bytes(4000))}, "a.eps is of a kind that is not read"),
    ("14 an empty mask", {"mask": grey("m.png", (128, 128), 0)}, "The mask m.png is empty"),
    ("14 a full mask", {"mask": grey("m.png", (128, 128), 255)}, "The mask m.png is full"),
    ("14 a mask of another size", {"mask": grey("m.png", (64, 64), 9)}, "is 64x64 pixels and the picture is 128x128"),
    ("15 no target", {"target": "  "}, "The target prompt is empty"),
    ("15 100,000 characters", {"target": "a" * 100_000}, "has 100000 characters; at most 2000 are allowed"),
    ("15 a control character", {"target": "a\x07cat"}, "control character U+0007"),
    ("15 a bidi character", {"source": "a \u202ecat"}, "control character U+202E"),
    ("15 a word that is not there", {"words": "dog"}, "is not in the prompt"),
    ("16 strength 0", {"strength": 0}, "strength is 0"),
    ("16 strength huge", {"strength": 1e9}, "strength is"),
    ("16 strength no number", {"strength": "NaN"}, "strength is NaN"),
    ("16 a negative seed", {"seed": -1}, "seed is -1"),
    ("16 a seed and a half", {"seed": 1.5}, "seed is 1.5"),
    ("16 a huge seed", {"seed": 1e30}, "seed is"),
    ("no such model", {"model": "/etc/passwd"}, "There is no model named /etc/passwd here"),
    ("16 negative steps", {"steps": -1}, "steps is -1"),
    ("16 huge steps", {"steps": 1e9}, "steps is 1000000000; it must be a whole number from 1 to 10000"),
    ("16 steps no number", {"steps": "NaN"}, "steps is NaN"),
    ("16 no such method", {"method": "<b>magic"}, "must be one of lusd"),
]


@pytest.mark.parametrize(("given", "sentence"), [each[1:] for each in BAD], ids=[each[0] for each in BAD])
def test_refused(client: Client, here: Path, given: dict[str, Any], sentence: str):
    from gradio_client import handle_file

    usual = {"picture": "cat.png", "source": "a cat on grass", "target": "a cat wearing a crown", "words": "",
             "mask": None, "method": "lusd", "strength": 1.0, "seed": 0, "model": "", "steps": 0}  # fmt: skip
    wanted = {name: value() if callable(value) else value for name, value in {**usual, **given}.items()}
    for name in ("picture", "mask"):
        wanted[name] = wanted[name] and handle_file(wanted[name])
    with pytest.raises(Exception, match=re.escape(sentence)) as refused:
        client.submit(*wanted.values(), api_name="/edit_picture").result(timeout=60)
    said = str(refused.value)
    assert "Traceback" not in said and str(here) not in said and "/tmp" not in said and "<b>" not in said


def test_1_a_file_over_the_limit(page: str, here: Path):
    import httpx

    with open("huge.png", "wb") as file:
        file.truncate(33 * 2**20)
    with open("huge.png", "rb") as file:
        answer = httpx.post(f"{page}/gradio_api/upload", files={"files": file}, timeout=60)
    assert answer.status_code == 413 and "32 MiB" in answer.json()["error"]


@pytest.mark.parametrize("kind", ["exif", "cmyk", "sixteen", "alpha", "animated"])
def test_5_normalised_and_noted(client: Client, here: Path, kind: str):
    from gradio_client import handle_file

    cat = Image.open("cat.png").convert("RGB")
    name = "odd.png"
    if kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6
        name = "odd.jpg"
        cat.resize((128, 96)).save(name, exif=exif)
    elif kind == "cmyk":
        name = "odd.tif"
        cat.convert("CMYK").save(name)
    elif kind == "sixteen":
        Image.fromarray(np.asarray(cat.convert("L")).astype(np.uint16) * 257).save(name)
    elif kind == "alpha":
        cat.putalpha(128)
        cat.save(name)
    else:
        name = "odd.gif"
        cat.save(name, save_all=True, append_images=[Image.new("RGB", cat.size)])
    path, recipe = client.submit(
        handle_file(name), "a cat", "a hat", method="dds", steps=2, api_name="/edit_picture"
    ).result(timeout=300)
    assert recipe["normalised"]
    edited = Image.open(path)
    assert edited.size == ((96, 128) if kind == "exif" else (128, 128))
    if kind == "alpha":
        assert set(np.asarray(edited.getchannel("A")).ravel()) == {128}


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/cat.png", "file:///etc/passwd"])
def test_20_an_address_is_never_fetched(client: Client, page: str, address: str):
    import httpx

    for where in ("queue/join", "call/heat_map"):
        data = {"data": [{"path": address, "meta": {"_type": "gradio.FileData"}}, "a cat", "cat"]}
        answer = httpx.post(f"{page}/gradio_api/{where}", json=data)
        assert answer.status_code == 422 and "never fetched" in answer.json()["error"]
    assert httpx.get(f"{page}/gradio_api/file={address}").status_code == 422
    if address.startswith("http"):  # the Python client sends these on, and says the sentence; others it opens itself
        given = {"path": address, "meta": {"_type": "gradio.FileData"}}
        with pytest.raises(ValueError, match="never fetched"):
            client.predict(given, "a cat", "cat", api_name="/heat_map")


def test_files_of_the_machine_are_not_served(page: str):
    import httpx

    for path in ("/etc/passwd", str(ROOT / "README.md"), str(ROOT / "app.py")):
        assert httpx.get(f"{page}/gradio_api/file={path}").status_code in (403, 404)
        data = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, "a cat", "cat"]}
        for where in ("queue/join", "call/heat_map", "run/heat_map"):
            answer = httpx.post(f"{page}/gradio_api/{where}", json=data)
            assert answer.status_code == 422 and "uploaded here" in answer.json()["error"]


def test_health(page: str):
    import httpx

    assert httpx.get(f"{page}/healthz").json()["status"] == "ok"
    assert httpx.get(f"{page}/readyz").json() == {"status": "ready"}
    assert httpx.get(f"{page}/monitoring").status_code in (403, 404)
