"""A contact sheet: what a batch made, on HTML pages that open from the disk. No script, nothing is fetched."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from sdsedit.batch.fields import FIELDS
from sdsedit.batch.places import OWN_FOLDER
from sdsedit.batch.store import Entry, Store
from sdsedit.errors import InputRefused, printable
from sdsedit.io.record import write_all

PER_PAGE = 200  # jobs
NAME = "sheet.html"
_WORDS = {
    "done": "done", "failed": "failed", "aside": "set aside", "waiting": "waiting", "running": "running",
}  # fmt: skip
_SHOWN = {"target", "source", "prompt", "words", "method", "seed"}  # settings that have a place of their own
_STYLE = """
:root{color-scheme:light dark;--ink:#1c1e21;--quiet:#626a73;--paper:#fff;--panel:#f5f6f8;--line:#dfe3e8;--bad:#b3261e;
--good:#1a7f37;--wait:#8a6d00}
@media (prefers-color-scheme:dark){:root{--ink:#e8eaed;--quiet:#9aa3ad;--paper:#16181b;--panel:#1f2226;--line:#363b42;
--bad:#ff8a80;--good:#7ddb93;--wait:#e5c558}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1180px;padding:24px 20px 60px;background:var(--paper);
color:var(--ink);font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:24px;margin:0 0 4px}h2{font-size:18px;margin:32px 0 8px}p{margin:0 0 8px}.quiet{color:var(--quiet)}
a{color:inherit}nav{margin:20px 0;display:flex;gap:6px;flex-wrap:wrap}nav a,nav b{padding:4px 10px;border:1px solid
var(--line);border-radius:6px;text-decoration:none}nav b{background:var(--panel)}
article{display:grid;grid-template-columns:minmax(0,1fr) auto;gap:6px 20px;padding:14px 16px;margin:12px 0;
border:1px solid var(--line);border-radius:10px;background:var(--panel)}article>div{min-width:0}
h3{font-size:15px;margin:0;overflow-wrap:anywhere}.words{margin:4px 0;font-size:16px;overflow-wrap:anywhere}
.state{font-weight:600}.done{color:var(--good)}.failed,.aside{color:var(--bad)}.waiting,.running{color:var(--wait)}
.why{color:var(--bad);overflow-wrap:anywhere}dl{display:flex;flex-wrap:wrap;gap:2px 16px;margin:6px 0 0;font-size:13px}
dl div{display:flex;gap:5px}dt{color:var(--quiet)}dl b{font-weight:600;min-width:44px}.tell{display:flex;flex-wrap:wrap;
gap:4px 18px;margin:0 0 8px}
dd{margin:0;overflow-wrap:anywhere}ul{margin:6px 0 0;padding-left:18px;
font-size:13px;
color:var(--quiet)}.pictures{display:flex;gap:8px}figure{margin:0;text-align:center;font-size:12px;
color:var(--quiet)}figure img,.none{display:block;width:150px;height:150px;object-fit:contain;
background:repeating-conic-gradient(#8883 0 25%,#0000 0 50%) 0 0/16px 16px;
border-radius:6px;margin-bottom:3px}
.none{display:flex;align-items:center;
justify-content:center;background:none;border:1px dashed var(--line)}
@media (max-width:820px){article{grid-template-columns:1fr}figure img,.none{width:min(104px,26vw);
height:104px}}
"""


def write_sheet(store: Store, folder: Path, title: str) -> Path:
    """Write the pages into the output folder, what went wrong first; gives the first page."""
    counts = store.counts()
    _show_inputs(store, folder)
    entries = [*store.entries("failed", "aside"), *store.entries("done"), *store.entries("running", "waiting")]
    pages = max(1, -(-len(entries) // PER_PAGE))
    names = [NAME if k == 0 else f"sheet-{k + 1}.html" for k in range(pages)]
    for k, name in enumerate(names):
        part = entries[k * PER_PAGE : (k + 1) * PER_PAGE]
        text = "".join(_page(folder, title, counts, part, names, k))
        write_all([(folder / name, text.encode("utf-8"))])
    for old in folder.glob("sheet-*.html"):
        number = old.stem.removeprefix("sheet-")
        if number.isdigit() and int(number) > pages:
            old.unlink(missing_ok=True)
    return folder / NAME


def _show_inputs(store: Store, folder: Path) -> None:
    """A thumbnail of what was to be edited, for jobs that went wrong before they had one."""
    from sdsedit.batch.work import thumbnail
    from sdsedit.io.images import read_picture

    root = store.remembered("root")
    thumbs = folder / OWN_FOLDER / "thumbs"
    if root is None:
        return
    for entry in store.entries("failed", "aside"):
        picture, path = entry.job.input, thumbs / f"{entry.id}.before.jpg"
        if picture is None or entry.job.kind not in ("image", "style") or path.exists():
            continue
        try:
            data = thumbnail(read_picture(Path(root) / picture).rgb)
            thumbs.mkdir(exist_ok=True)
            write_all([(path, data)])
        except (InputRefused, OSError):  # it has gone, or the disk is full: the sheet does without
            continue


def _page(
    folder: Path, title: str, counts: dict[str, int], part: Sequence[Entry], names: Sequence[str], k: int
) -> Iterable[str]:
    total = sum(counts.values())
    said = ", ".join(f"{count} {_WORDS[state]}" for state, count in counts.items() if count)
    groups = list(dict.fromkeys(_group(entry) for entry in part))
    policy = "default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'"
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_safe(title)}</title>'
    yield '<meta name="viewport" content="width=device-width,initial-scale=1">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{_STYLE}</style></head><body>'
    when = time.strftime("%Y-%m-%d %H:%M")
    yield f"<h1>{_safe(title)}</h1><p>{total} jobs: {said or 'none'}.</p>"
    yield f'<p class="quiet">As of {when}. A click on what came after opens the file at its full size.</p>'
    yield '<p class="tell">'
    if len(groups) > 1:
        yield " ".join(f'<a href="#{_anchor(group)}">{group}</a>' for group in groups)
    yield f' <a href="{OWN_FOLDER}/expanded.jsonl">All rows, as they were understood</a></p>'
    if len(names) > 1:
        yield "<nav>"
        for i, name in enumerate(names):
            yield f"<b>{i + 1}</b>" if i == k else f'<a href="{name}">{i + 1}</a>'
        yield "</nav>"
    shown = ""
    for entry in part:
        group = _group(entry)
        if group != shown:
            yield f'<h2 id="{_anchor(group)}">{group}</h2>'
            shown = group
        yield from _article(folder, entry)
    yield "</body></html>\n"


def _group(entry: Entry) -> str:
    return "What went wrong" if entry.state in ("failed", "aside") else "Done" if entry.state == "done" else "To do"


def _anchor(group: str) -> str:
    return group.lower().replace(" ", "-")


def _article(folder: Path, entry: Entry) -> Iterable[str]:
    job, given = entry.job, entry.job.settings
    yield f'<article id="{_safe(entry.id)}"><div><h3><span class="state {entry.state}">{_WORDS[entry.state]}</span> '
    yield f"{_safe(entry.id)} <span class='quiet'>{job.kind}, line {entry.line}</span></h3>"
    if job.kind == "style":
        looks = ", ".join(PurePosixPath(name).name for name in job.references)
        what = given["prompt"] or (
            f"a texture, {given['texture']}" if given["texture"] else PurePosixPath(job.input or "").name
        )
        yield f'<p class="words"><b>{_safe(what)}</b> in the look of {_safe(looks)}</p>'
    elif job.kind == "sketch":
        yield f'<p class="words">{_safe(given["prompt"])}</p>'
    else:
        source = f"{_safe(given['source'])} → " if given.get("source") else ""
        yield f'<p class="words">{source}<b>{_safe(given["target"])}</b></p>'
    if entry.reason:
        yield f'<p class="why">{_safe(entry.reason)}</p>'
    for what, pairs in (("Made", list(_facts(entry))), ("Asked", list(_settings(entry)))):
        if pairs:
            yield f"<dl><div><dt><b>{what}</b></dt></div>"
            for name, value in pairs:
                yield f"<div><dt>{_safe(name)}</dt><dd>{_safe(value)}</dd></div>"
            yield "</dl>"
    notes = entry.facts.get("notes") or ()
    if notes:
        yield "<ul>" + "".join(f"<li>{_safe(note)}</li>" for note in notes) + "</ul>"
    yield '</div><div class="pictures">'
    output = job.output if job.output in entry.files else None
    captions = {"before": "guide" if job.kind == "sketch" else "before", "mask": "where", "after": "after"}
    captions |= {"mask": "look"} if job.kind == "style" else {}
    for what, caption in captions.items():
        thumb = f"{OWN_FOLDER}/thumbs/{entry.id}.{what}.jpg"
        if not (folder / thumb).is_file():
            if what == "after" and entry.state in ("failed", "aside"):
                yield '<figure><span class="none">none</span>after</figure>'
            continue
        image = f'<img src="{quote(thumb)}" alt="{caption} of {_safe(entry.id)}" loading="lazy">'
        if what == "after" and output:
            image = f'<a href="{quote(output)}">{image}</a>'
        yield f"<figure>{image}{caption}</figure>"
    yield "</div></article>\n"


def _facts(entry: Entry) -> Iterable[tuple[str, str]]:
    facts = entry.facts
    if entry.state == "done" or entry.files:
        yield "file", entry.job.output
    if facts.get("words"):
        yield "looked for", ", ".join(facts["words"])
    if "kept" in facts:
        what = {"image": "of the pixels", "svg": "of the shapes", "splats": "of the Gaussians"}[entry.kind]
        yield "kept exactly", f"{100 * facts['kept']:.1f} % {what}"
    for name in ("strokes", "edit", "changed", "removed", "added", "unlike the references"):
        if name in facts:
            yield name, str(facts[name])
    if "background_psnr" in facts:
        yield "background", f"{facts['background_psnr']:.1f} dB PSNR"
    if "steps" in facts:
        yield "steps", str(facts["steps"])
    if entry.seconds:
        yield "took", f"{entry.seconds:.1f} s"
    if entry.attempts > 1:
        yield "attempts", str(entry.attempts)


def _settings(entry: Entry) -> Iterable[tuple[str, str]]:
    """What was asked for, where it is not what everybody gets."""
    job = entry.job
    if job.input:
        yield "input", PurePosixPath(job.input).name
    if job.mask:
        yield "mask", PurePosixPath(job.mask).name
    if "method" in job.settings:
        yield "method", job.settings["method"]
    yield "seed", str(job.settings["seed"])
    for name, field in FIELDS[job.kind].items():
        value: Any = job.settings.get(name)
        if name in _SHOWN or name in entry.facts or value is None or value == field.default:
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else "yes" if value is True else str(value)
        if shown:
            yield name.replace("_", " "), shown
    if job.model != "builtin":
        yield "model", PurePosixPath(job.model).name if job.model.startswith("/") else job.model
    for name, value in job.options.items():
        each = value if isinstance(value, tuple) else (value,)
        yield name.replace("_", " "), ", ".join(PurePosixPath(str(one)).name for one in each)


def _safe(text: object) -> str:
    return html.escape(printable(str(text), 2500))
