"""The page of an audit: thumbnails of what was found, in one file that needs no other."""

import base64
import html
import io
from collections.abc import Callable
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
from PIL import Image

from data.files import write_atomically
from evaluation.plots import readable

MOST = 200  # entries of a kind on the page; the table has all
SIDE = 128  # pixels of a thumbnail
TITLES = {
    "label": "Probably mislabeled",
    "exact copy": "The same bytes",
    "near copy": "Nearly the same picture",
}
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Audit of $data</title>
<style>
:root { color-scheme: light dark; --back: #fff; --text: #1a1a1a; --soft: #555; --card: #f3f3f3; --mark: #a33; }
@media (prefers-color-scheme: dark) {
  :root { --back: #161616; --text: #eee; --soft: #aaa; --card: #262626; --mark: #f88; }
}
body { max-width: 74rem; margin: 0 auto; padding: 0 1rem 3rem; font: 1rem/1.5 system-ui, sans-serif;
  color: var(--text); background: var(--back); }
h1, h2 { line-height: 1.2; }
.soft { color: var(--soft); font-size: 0.9rem; }
ul { list-style: none; padding: 0; display: grid; gap: 0.7rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 10rem), 1fr)); }
ul.pairs { grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
li { background: var(--card); border-radius: 0.4rem; padding: 0.5rem; font-size: 0.8rem; overflow-wrap: anywhere; }
.images { display: flex; gap: 0.4rem; }
img { width: 100%; min-width: 0; flex: 1 1 0; aspect-ratio: 1; object-fit: cover; border-radius: 0.2rem; }
b { color: var(--mark); }
</style>
</head>
<body>
<h1>Audit of $data</h1>
<p class="soft">$about</p>
$sections
</body>
</html>
""")


def write_page(
    path: Path, data: str, table: pd.DataFrame, pixels: Callable[[int], np.ndarray], threshold: float
) -> None:
    """Write the page of what `audit.audit` has found; `pixels` gives the bytes (1 or 3, S, S) of an image."""
    sections = "\n".join(_section(kind, table[table["kind"] == kind], pixels) for kind in TITLES)
    about = (
        "A label is listed where a classifier that has not seen the image finds another class far more probable; the "
        f"margin is by how much.  Two pictures are nearly the same above a correlation of {threshold:.3f}, which 99 % "
        "of re-encoded copies of this data set exceed.  Look before you delete.  audit.csv lists everything."
    )
    page = PAGE.substitute(data=html.escape(readable(data)), about=about, sections=sections)
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def _section(kind: str, table: pd.DataFrame, pixels: Callable[[int], np.ndarray]) -> str:
    entries = "\n".join(_entry(line, pixels) for line in table.head(MOST).itertuples(index=False))
    shown = f"{len(table):,}" if len(table) <= MOST else f"the first {MOST} of {len(table):,}"
    pairs = "" if kind == "label" else ' class="pairs"'
    body = f"<ul{pairs}>\n{entries}\n</ul>" if entries else "<p>None was found.</p>"
    return f'<h2>{TITLES[kind]} <span class="soft">({shown})</span></h2>\n{body}'


def _entry(line, pixels: Callable[[int], np.ndarray]) -> str:
    images = [_image(pixels(line.image), line.file)]
    if line.kind == "label":
        text = f"{_plain(line.file)}<br>label {_plain(line.label)}, rather <b>{_plain(line.other_label)}</b>"
        return f"<li>{images[0]}{text}<br>margin {line.score:.2f}</li>"
    images.append(_image(pixels(line.other), line.other_file))
    words = [] if line.kind == "exact copy" else [f"correlation {line.score:.3f}"]
    words += ["<b>across splits</b>"] * (line.split != line.other_split)
    words += [f"<b>two labels</b>: {_plain(line.label)}, {_plain(line.other_label)}"] * (line.label != line.other_label)
    text = "<br>".join([_plain(line.file), _plain(line.other_file), *words])
    return f'<li><div class="images">{"".join(images)}</div>{text}</li>'


def picture_of(pixels: np.ndarray) -> Image.Image:
    """Bytes (1 or 3, S, S) as Pillow holds them."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _image(pixels: np.ndarray, name: str) -> str:
    picture = picture_of(pixels)
    picture.thumbnail((SIDE, SIDE))
    saved = io.BytesIO()
    picture.save(saved, "jpeg", quality=75)
    encoded = base64.b64encode(saved.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{encoded}" alt="{_plain(name)}" loading="lazy">'


def _plain(text: str) -> str:
    return html.escape(readable(text))
