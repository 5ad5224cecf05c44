"""The page of the demo, and its script: everything that a visitor sees comes from `evaluation.demo.Demo.answer`."""

import html
from collections.abc import Sequence

from evaluation.plots import readable
from evaluation.web_page import page_of

BODY = """<p class="soft">Classes by {model}.  A photograph stays on this machine and is not saved.</p>
<form id="ask">
<label class="drop" id="drop">Drop a photograph here, or pick one
<input type="file" id="file" accept="image/*"></label>
<div class="filter">
<label>Why not <select id="why_not"><option value="">(no other class)</option>{classes}</select></label>
<label>Heat map <select id="method"><option value="recipro_cam">Recipro-CAM</option>
<option value="score_cam">Score-CAM, about half a minute</option></select></label>
</div>
</form>
<p id="status" role="status"></p>
<div id="answer" hidden>
<ul class="cards pairs">
<li><div class="images"><img id="picture" alt="The photograph as the network sees it"></div>As the network sees it</li>
<li><div class="images"><img id="map" alt="Heat map"></div>Evidence for <b id="map_title"></b></li>
<li><b>Most probable classes</b><div id="classes"></div><mark id="warning"></mark></li>
</ul>
<div id="alike" hidden><h2>Training images that are most alike</h2><ul class="cards" id="nearest"></ul></div>
</div>
<style>
.drop {{ display: block; border: 2px dashed var(--line); border-radius: 0.6rem; padding: 1.5rem; text-align: center; }}
.drop.over {{ border-color: var(--link); background: var(--card); }}
.drop input {{ display: block; margin: 0.7rem auto 0; max-width: 100%; font: inherit; }}
select {{ font: inherit; max-width: 100%; }}
#classes div {{ display: flex; justify-content: space-between; gap: 0.5rem; }}
#classes meter {{ width: 100%; height: 0.8rem; }}
</style>
<script src="/demo.js" data-most="{most}"></script>"""
SCRIPT = """"use strict";
const by = id => document.getElementById(id);
const most = Number(document.currentScript.dataset.most);
let photograph = null, asked = 0, running = null;

function show(answer) {
  by("picture").src = answer.picture;
  by("map").src = answer.map;
  by("map_title").textContent = answer.map_title;
  by("warning").textContent = answer.warning;
  by("classes").replaceChildren(...answer.classes.flatMap(([name, probability]) => {
    const line = document.createElement("div"), bar = document.createElement("meter");
    for (const text of [name, probability.toFixed(3)]) {
      line.appendChild(document.createElement("span")).textContent = text;
    }
    bar.value = probability;
    bar.setAttribute("aria-label", name);
    return [line, bar];
  }));
  by("nearest").replaceChildren(...answer.nearest.map(each => {
    const card = document.createElement("li"), image = document.createElement("img");
    image.src = each.picture;
    image.alt = each.name;
    card.append(image, `${each.name}, similarity ${each.like.toFixed(2)}`);
    return card;
  }));
  by("alike").hidden = answer.nearest.length === 0;
  by("answer").hidden = false;
}
async function ask() {
  if (photograph === null) return;
  const number = ++asked, say = text => { by("status").textContent = text; };
  if (photograph.size > most) {
    by("answer").hidden = true;
    return say(`The file has more than ${most / 1e6} MB.`);
  }
  if (running !== null) running.abort();
  running = new AbortController();
  say("Looking ...");
  const query = new URLSearchParams({why_not: by("why_not").value, method: by("method").value});
  try {
    const response = await fetch(`/answer?${query}`, {method: "POST", body: photograph, headers: {"X-Demo": "1"},
      signal: running.signal});
    const answer = await response.json();
    if (number !== asked) return;  // another photograph has been dropped since
    if (!response.ok) {
      by("answer").hidden = true;
      return say(answer.error);
    }
    show(answer);
    say(`Answered in ${answer.seconds.toFixed(1)} seconds.`);
  } catch (error) {
    if (number === asked) say("The server does not answer; is it still running?");
  }
}
function take(files) {
  if (files.length === 0) return;
  photograph = files[0];
  ask();
}
by("file").addEventListener("change", () => take(by("file").files));
for (const id of ["why_not", "method"]) by(id).addEventListener("change", ask);
for (const kind of ["dragover", "drop", "dragleave"]) {
  by("drop").addEventListener(kind, event => {
    event.preventDefault();
    by("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files);
  });
}
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, event => event.preventDefault());
by("ask").addEventListener("submit", event => event.preventDefault());
"""


def demo_page(model: str, class_names: Sequence[str], most_bytes: int) -> str:
    """The page for a model of these classes, which takes uploads of at most so many bytes."""
    options = (f'<option value="{number}">{html.escape(readable(name))}' for number, name in enumerate(class_names))
    body = BODY.format(model=html.escape(readable(model)), classes="</option>".join(options), most=most_bytes)
    return page_of("Which scene is this?", [body])
