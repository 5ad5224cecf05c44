"""Pages of HTML that follow the reader's color scheme and width, and whose tables can be sorted and filtered."""

import base64
import html
import io
from collections.abc import Sequence
from string import Template

import numpy as np
import pandas as pd
from PIL import Image

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --back: #fff; --text: #1a1a1a; --soft: #555; --card: #f3f3f3; --line: #ddd;
  --mark: #a33; --link: #0b57b5; }
@media (prefers-color-scheme: dark) {
  :root { --back: #161616; --text: #eee; --soft: #aaa; --card: #262626; --line: #3a3a3a; --mark: #f88;
    --link: #8ab8ff; }
}
body { max-width: 74rem; margin: 0 auto; padding: 0 1rem 3rem; font: 1rem/1.5 system-ui, sans-serif;
  color: var(--text); background: var(--back); }
h1, h2 { line-height: 1.2; }
h1 { margin-bottom: 0.2rem; }
a { color: var(--link); overflow-wrap: anywhere; }
.soft, figcaption { color: var(--soft); font-size: 0.9rem; }
mark { color: var(--mark); background: none; font-weight: 600; }
figure { margin: 2rem 0; }
figure img { background: #fff; }
img { max-width: 100%; height: auto; }
.strip { display: flex; gap: 0.3rem; }
.strip img { flex: 1 1 0; min-width: 0; }
.cards { list-style: none; padding: 0; display: grid; gap: 0.7rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 10rem), 1fr)); }
.cards.pairs { grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.cards li { background: var(--card); border-radius: 0.4rem; padding: 0.5rem; font-size: 0.8rem;
  overflow-wrap: anywhere; }
.cards img { width: 100%; min-width: 0; flex: 1 1 0; aspect-ratio: 1; object-fit: cover; border-radius: 0.2rem; }
.images { display: flex; gap: 0.4rem; }
.wide { overflow: auto; max-height: 80vh; border: 1px solid var(--line); }
table { border-collapse: separate; border-spacing: 0; font-size: 0.85rem; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left; }
td { white-space: nowrap; }
td:first-child { white-space: normal; min-width: 13rem; overflow-wrap: anywhere; position: sticky; left: 0;
  background: var(--back); }
td:last-child { white-space: normal; min-width: 22rem; }
th { position: sticky; top: 0; background: var(--card); z-index: 1; }
th:first-child { left: 0; z-index: 2; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--link); }
th[aria-sort=ascending] button::after { content: " \\25b2"; }
th[aria-sort=descending] button::after { content: " \\25bc"; }
.filter { display: flex; flex-wrap: wrap; gap: 0.6rem; align-items: baseline; margin: 0.5rem 0; }
.filter input { font: inherit; padding: 0.2rem 0.4rem; min-width: 0; flex: 0 1 20rem; }
@media (max-width: 40rem) {
  table { font-size: 0.75rem; }
  th, td { padding: 0.2rem 0.3rem; }
  td:first-child { min-width: 7rem; }
}
</style>
</head>
<body>
$body
$scripts
</body>
</html>
""")
# Every table gets buttons in its head, which sort, and a field that keeps the lines with all of its words.
TABLES = """<script>
"use strict";
const number = text => parseFloat(text.replace(/^[<\\s]+/, ""));
function sort(table, column, header) {
  const descending = header.getAttribute("aria-sort") === "ascending";
  for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0], rows = [...body.rows], text = row => row.cells[column].textContent.trim();
  const numbers = rows.every(row => text(row) === "" || !isNaN(number(text(row))));
  const compare = numbers ? (a, b) => number(a) - number(b) : (a, b) => a.localeCompare(b);
  rows.sort((a, b) => {
    if (text(a) === "" || text(b) === "") return (text(a) === "") - (text(b) === "");  // empty cells stay last
    return descending ? compare(text(b), text(a)) : compare(text(a), text(b));
  });
  body.append(...rows);
}
function filter(table, words, count) {
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
    shown += !row.hidden;
  }
  count.textContent = `${shown} of ${table.tBodies[0].rows.length} lines`;
}
for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(table, column, header));
    header.append(button);
  });
  const line = document.createElement("div"), label = document.createElement("label");
  const field = document.createElement("input"), count = document.createElement("span");
  line.className = "filter";
  count.className = "soft";
  count.setAttribute("role", "status");
  field.type = "search";
  field.placeholder = "such as: byol better";
  label.append("Lines with the words ", field);
  line.append(label, count);
  table.parentElement.before(line);
  const update = () => filter(table, field.value.toLowerCase().split(/\\s+/), count);
  field.addEventListener("input", update);
  update();
}
</script>"""


def table_html(table: pd.DataFrame) -> str:
    """A table of texts as HTML, escaped, to be sorted and filtered by the reader; a sentence if it has no lines."""
    if not len(table):
        return "<p>None yet.</p>"
    return f'<div class="wide">\n{table.to_html(border=0, index=False)}\n</div>'


def page_of(title: str, parts: Sequence[str]) -> str:
    """The text of a page: its title, which is escaped, and parts of HTML below it."""
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *parts])
    return PAGE.substitute(title=html.escape(title), body=body, scripts=TABLES if "<table" in body else "")


def picture_of(pixels: np.ndarray) -> Image.Image:
    """Bytes (1 or 3, S, S) as Pillow holds them."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def data_url(picture: Image.Image, kind: str = "png", **options) -> str:
    """A picture as a URL that holds it; `kind` and `options` are those of Pillow's `save`."""
    saved = io.BytesIO()
    picture.save(saved, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(saved.getvalue()).decode()}"
