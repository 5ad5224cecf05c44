"""The page of an audit: thumbnails of what was found, in one file that needs no other."""

import html
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from data.files import write_text
from evaluation.plots import readable
from evaluation.web_page import data_url, page_of, picture_of

MOST = 200  # entries of a kind on the page; the table has all
SIDE = 128  # pixels of a thumbnail
TITLES = {
    "label": "Probably mislabeled",
    "exact copy": "The same bytes",
    "near copy": "Nearly the same picture",
}


def write_audit(
    path: Path, data: str, table: pd.DataFrame, pixels: Callable[[int], np.ndarray], threshold: float
) -> None:
    """Write the page of what `audit.audit` has found; `pixels` gives the bytes (1 or 3, S, S) of an image."""
    sections = [_section(kind, table[table["kind"] == kind], pixels) for kind in TITLES]
    about = (
        "A label is listed where a classifier that has not seen the image finds another class far more probable; the "
        f"margin is by how much.  Two pictures are nearly the same above a correlation of {threshold:.3f}, which 99 % "
        "of re-encoded copies of this data set exceed.  Look before you delete.  audit.csv lists everything."
    )
    write_text(path, page_of(f"Audit of {readable(data)}", [f'<p class="soft">{about}</p>', *sections]))


def _section(kind: str, table: pd.DataFrame, pixels: Callable[[int], np.ndarray]) -> str:
    entries = "\n".join(_entry(line, pixels) for line in table.head(MOST).itertuples(index=False))
    shown = f"{len(table):,}" if len(table) <= MOST else f"the first {MOST} of {len(table):,}"
    kinds = "cards" if kind == "label" else "cards pairs"
    body = f'<ul class="{kinds}">\n{entries}\n</ul>' if entries else "<p>None was found.</p>"
    return f'<h2>{TITLES[kind]} <span class="soft">({shown})</span></h2>\n{body}'


def _entry(line, pixels: Callable[[int], np.ndarray]) -> str:
    images = [_image(pixels(line.image), line.file)]
    if line.kind == "label":
        text = f"{_plain(line.file)}<br>label {_plain(line.label)}, rather <mark>{_plain(line.other_label)}</mark>"
        return f"<li>{images[0]}{text}<br>margin {line.score:.2f}</li>"
    images.append(_image(pixels(line.other), line.other_file))
    words = [] if line.kind == "exact copy" else [f"correlation {line.score:.3f}"]
    words += ["<mark>across splits</mark>"] * (line.split != line.other_split)
    words += [f"<mark>two labels</mark>: {_plain(line.label)}, {_plain(line.other_label)}"] * (
        line.label != line.other_label
    )
    text = "<br>".join([_plain(line.file), _plain(line.other_file), *words])
    return f'<li><div class="images">{"".join(images)}</div>{text}</li>'


def _image(pixels: np.ndarray, name: str) -> str:
    picture = picture_of(pixels)
    picture.thumbnail((SIDE, SIDE))
    return f'<img src="{data_url(picture, "jpeg", quality=75)}" alt="{_plain(name)}" loading="lazy">'


def _plain(text: str) -> str:
    return html.escape(readable(text))
