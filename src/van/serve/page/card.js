// A card of the page: one picture, what the server says of it, and the maps behind that.

import { call, inTurn, Trouble } from "./api.js";
import { classColour, cssColour, drawThings } from "./draw.js";

const BEST = 5;

export function element(tag, { className = "", text = "", ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const percent = (share) => (share >= 1 ? "100 %" : `${Math.min(99.9, 100 * share).toFixed(1)} %`);
const time = (ms) => (ms < 10 ? `${ms.toFixed(1)} ms` : ms < 2000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
// One picture: what is shown of it, and what is asked of the server about it.
export class Card {
  // ``page`` says which network and maps are chosen, and is told what goes on.
  constructor(file, page) {
    this.file = file;
    this.page = page;
    this.stop = new AbortController();
    this.things = [];
    this.explained = null;
    this.name = file.name || "pasted picture";
    this.note = element("p", { className: "file soft" });
    const away = element("button", { className: "away", type: "button", "aria-label": `Remove ${this.name}`, text: "Remove" });
    away.addEventListener("click", () => this.remove());
    const heading = element("h3", {}, element("bdi", { text: this.name }));
    const head = element("div", { className: "card-head" }, element("div", {}, heading, this.note), away);
    this.figure = element("figure");
    this.said = element("div", { className: "said" });
    this.maps = element("div", { className: "maps", "aria-live": "polite" });
    this.body = element("div", { className: "card-body" }, this.figure, this.said, this.maps);
    this.place = element("li", { className: "card" }, head, this.body);
    this.state = "waiting";
    this.busy(this.said, "Waiting for its turn.");
  }

  busy(where, words) {
    where.replaceChildren(element("p", { className: "busy soft", text: words }));
  }

  fail(where, error, again) {
    const button = element("button", { type: "button", className: "again", text: "Try again" });
    button.addEventListener("click", again);
    const words = error instanceof Trouble ? error.message : `This page failed: ${error.message}`;
    where.replaceChildren(element("p", { className: "trouble", role: "alert", text: words }), button);
  }

  async show() {
    try {
      this.bitmap = await createImageBitmap(this.file);
      this.canvas = element("canvas", { role: "img", "aria-label": this.name });
      drawThings(this.canvas, this.bitmap, []);
      this.picture(this.canvas);
    } catch {
      this.bitmap = null; // TIFF, say: the server may know it all the same
    }
  }

  picture(shown) {
    this.figure.replaceChildren(shown);
    this.body.classList.add("pictured");
  }

  // Ask what is in the picture, then for the maps that are wanted.
  async ask() {
    this.state = "waiting";
    this.explained = null;
    this.maps.replaceChildren();
    this.page.report();
    try {
      await this.page.known;
      await inTurn(() => this.predict());
      this.state = "answered";
      this.page.lastWords = `${this.name}: ${this.summary}`;
      this.explain();
    } catch (error) {
      if (this.stop.signal.aborted) return;
      this.state = "failed";
      this.page.lastWords = `${this.name}: no answer`;
      this.fail(this.said, error, () => this.ask());
    }
    this.page.report();
  }

  tell(where, words, kind) {
    this.busy(where, words || "Asking the server.");
    this.page.problem(kind === "gone" || kind === "busy" ? words : "");
  }

  async predict() {
    this.stop.signal.throwIfAborted();
    this.busy(this.said, "Asking the server.");
    this.network = this.page.network();
    const started = performance.now();
    const fields = { top: this.network.task === "classify" ? BEST : "", min_score: this.network.least_score ?? "" };
    const response = await this.post("predict", fields, "application/json", this.said);
    const { answers: [answer] } = await response.json();
    if (answer.error) throw new Trouble(answer.error.message);
    this.answer = answer;
    if (answer.regions) await this.drawn();
    this.showAnswer(performance.now() - started);
  }

  // Regions come without their pixels; the server draws them, where it can.
  async drawn() {
    if (!this.page.draws) return;
    const response = await this.post("predict", {}, "image/png", this.said);
    if (!response.headers.get("Content-Type")?.startsWith("image/")) {
      this.page.draws = false;
      return;
    }
    const picture = element("img", { alt: `Regions of ${this.name}`, src: URL.createObjectURL(await response.blob()) });
    await picture.decode();
    this.picture(picture);
  }

  async post(path, fields, accept, where) {
    checkSize(this.file, this.page.limits);
    const response = await call(path, {
      body: this.form({ model: this.network.name, ...fields }), accept, signal: this.stop.signal,
      tell: (words, kind) => this.tell(where, words, kind),
    });
    this.page.problem("");
    return response;
  }

  form(fields) {
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) if (value !== "") form.append(name, value);
    form.append("picture", this.file, this.name);
    return form;
  }

  showAnswer(elapsedMs) {
    const { width, height, classes, things, regions } = this.answer;
    const size = this.bitmap ? [this.bitmap.width, this.bitmap.height] : [width, height];
    const { network_ms, batch } = this.answer.timings;
    const together = batch > 1 ? `, ${batch} pictures at once` : "";
    const asked = this.page.networks.length > 1 ? ` · ${this.network.name}` : "";
    this.note.textContent = `${size[0]} × ${size[1]} px${asked} · ${time(elapsedMs)} (network ${time(network_ms)}${together})`;
    if (classes) this.showClasses(classes);
    else if (things) this.showThings();
    else this.showRegions(regions);
  }

  showClasses(classes) {
    const best = classes[0];
    this.summary = `${best.label}, ${percent(best.probability)}`;
    const rows = classes.slice(0, BEST).map(({ label, probability }) => row(probability, label, percent(probability)));
    this.said.replaceChildren(firstWord(best.label, percent(best.probability)), element("ol", { className: "bars" }, ...rows));
    this.canvas?.setAttribute("aria-label", `${this.name}: ${this.summary}`);
  }

  showThings() {
    const least = this.page.leastScore();
    this.things = this.answer.things.filter((thing) => thing.score >= least);
    const hidden = this.answer.things.length - this.things.length;
    const kinds = new Map();
    for (const { label } of this.things) kinds.set(label, (kinds.get(label) ?? 0) + 1);
    this.summary = [...kinds].map(([label, count]) => (count > 1 ? `${count} × ${label}` : label)).join(", ") || "nothing found";
    const words = this.things.length === 1 ? "1 thing" : this.things.length ? `${this.things.length} things` : "Nothing";
    const list = element("ol", { className: "bars" }, ...this.things.map((thing) => this.thingRow(thing)));
    this.said.replaceChildren(firstWord(words, hidden ? `and ${hidden} less sure` : "found"), list);
    this.canvas?.setAttribute("aria-label", `${this.name}: ${this.summary}`);
    this.paint();
  }

  thingRow(thing) {
    const made = row(thing.score, thing.label, percent(thing.score), { index: thing.index, button: true });
    const button = made.firstChild;
    const see = (one) => () => this.paint(one ?? this.chosen);
    button.addEventListener("pointerenter", see(thing));
    button.addEventListener("focus", see(thing));
    button.addEventListener("pointerleave", see());
    button.addEventListener("blur", see());
    button.addEventListener("click", () => {
      this.chosen = this.chosen === thing ? null : thing;
      for (const other of this.said.querySelectorAll("button[aria-pressed]")) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(this.chosen === thing));
      this.paint(this.chosen);
    });
    return made;
  }

  paint(chosen = null) {
    if (this.bitmap) drawThings(this.canvas, this.bitmap, this.things, chosen);
  }

  showRegions(regions) {
    const there = regions.filter((region) => region.pixels > 0).sort((one, other) => other.share - one.share);
    this.summary = there.slice(0, 3).map(({ label, share }) => `${label} ${percent(share)}`).join(", ");
    const rows = there.map(({ share, label, index }) => row(share, label, percent(share), { index }));
    this.said.replaceChildren(firstWord(there[0]?.label ?? "Nothing", "is most of it"), element("ol", { className: "bars" }, ...rows));
  }

  // The maps that are wanted now, unless they are there.
  async explain() {
    const wish = this.page.wish();
    if (this.state !== "answered" || JSON.stringify(wish) === this.explained) return;
    this.explained = JSON.stringify(wish);
    this.body.classList.toggle("mapped", wish?.kind === "maps");
    if (!wish) return this.maps.replaceChildren();
    this.maps.classList.toggle("wide", wish.kind === "lka");
    this.busy(this.maps, "Asking what it rests on.");
    const current = () => this.explained === JSON.stringify(wish);
    try {
      const response = await inTurn(() => this.post("explain", wish, "image/png", this.maps));
      const picture = element("img", { alt: altOf(this, wish), src: URL.createObjectURL(await response.blob()) });
      await picture.decode();
      if (current()) this.maps.replaceChildren(mapFigure(picture, wish));
    } catch (error) {
      if (this.stop.signal.aborted || !current()) return;
      this.fail(this.maps, error, () => { this.explained = null; this.explain(); });
    }
  }

  remove() {
    this.stop.abort(new Error("removed"));
    const after = this.place.nextElementSibling ?? this.place.previousElementSibling;
    this.place.remove();
    this.bitmap?.close();
    this.page.removed(this, after);
  }
}

function firstWord(words, more) {
  return element("p", { className: "first-word" }, element("bdi", { text: words }), " ", element("small", { text: more }));
}

// A line of a list with a bar as long as ``share``; a swatch where a class has a colour in the picture.
function row(share, label, number, { index = null, button = false } = {}) {
  const inner = [element("bdi", { text: label }), element("span", { text: number })];
  if (index !== null) inner.unshift(element("i", { "aria-hidden": "true" }));
  const line = button
    ? element("button", { className: "row", type: "button", "aria-pressed": "false" }, ...inner)
    : element("div", { className: "row best" }, ...inner);
  const made = element("li", {}, line);
  made.style.setProperty("--share", Math.min(1, Math.max(0, share)));
  if (index !== null) {
    made.style.setProperty("--swatch", cssColour(classColour(index)));
    made.style.setProperty("--bar", cssColour(classColour(index)));
  }
  return made;
}

const altOf = (card, wish) => (wish.kind === "lka"
  ? `LKA's attention in each stage on ${card.name}`
  : `Class map of ${wish.classes || "what the network says"} on ${card.name}`);

function mapFigure(picture, wish) {
  const whole = element("a", { href: picture.src, target: "_blank", rel: "noopener" }, picture);
  const words = wish.kind === "maps" ? [element("figcaption", { text: "The brighter, the more this part raised the score." })] : [];
  return element("figure", {}, whole, ...words);
}

function checkSize(file, limits) {
  if (file.size > limits.body_bytes) {
    throw new Trouble(
      `This file is too large: it has ${megabytes(file.size)}, and the server takes at most ${megabytes(limits.body_bytes)}.`,
    );
  }
}

const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(bytes < 2 ** 20 ? 2 : 1)} MB`;
