// A card of the page: one image, its prediction and its explanation.

import { call, enqueue, RequestError } from "./api.js";
import { element, formatMegabytes, formatPercent, formatTime } from "./dom.js";
import { classColor, cssColor, drawDetections, LARGE_SIZE, textColor } from "./draw.js";
import { zoomable } from "./lightbox.js";

const TOP_CLASSES = 5;

export class Card {
  // `page` has the selected model and explanation, and is notified of changes.
  constructor(file, page) {
    this.file = file;
    this.page = page;
    this.abort = new AbortController();
    this.detections = [];
    this.selected = null;
    this.explained = null;
    this.name = file.name || "pasted image";
    this.info = element("p", { className: "info soft" });
    const remove = element("button", { className: "remove", type: "button", "aria-label": `Remove ${this.name}`, text: "Remove" });
    remove.addEventListener("click", () => this.remove());
    const heading = element("h3", {}, element("bdi", { text: this.name }));
    const head = element("div", { className: "card-head" }, element("div", {}, heading, this.info), remove);
    this.figure = element("figure");
    this.prediction = element("div", { className: "prediction" });
    this.explanation = element("div", { className: "explanation", "aria-live": "polite" });
    this.body = element("div", { className: "card-body" }, this.figure, this.prediction, this.explanation);
    this.root = element("li", { className: "card" }, head, this.body);
    this.state = "waiting";
    this.showBusy(this.prediction, "Waiting.");
  }

  showBusy(target, message) {
    target.replaceChildren(element("p", { className: "busy soft", text: message }));
  }

  showError(target, error, retry) {
    const button = element("button", { type: "button", className: "retry", text: "Retry" });
    button.addEventListener("click", retry);
    const message = error instanceof RequestError ? error.message : `Page error: ${error.message}`;
    target.replaceChildren(element("p", { className: "error", role: "alert", text: message }), button);
  }

  async showImage() {
    try {
      this.bitmap = await createImageBitmap(this.file);
    } catch {
      this.bitmap = null; // a format such as TIFF, which the server may support although the browser does not
      return;
    }
    this.canvas = element("canvas", { role: "img", "aria-label": this.name });
    drawDetections(this.canvas, this.bitmap, []);
    this.setFigure(zoomable(this.canvas, this.name, () => {
      const large = element("canvas");
      drawDetections(large, this.bitmap, this.detections, { selected: this.selected, withText: true, size: LARGE_SIZE });
      return large;
    }));
  }

  setFigure(content) {
    this.figure.replaceChildren(content);
    this.body.classList.add("with-image");
  }

  // Request the prediction, then the selected explanation.
  async run() {
    this.state = "waiting";
    this.explained = null;
    this.explanation.replaceChildren();
    this.page.updateStatus();
    try {
      await this.page.modelsLoaded;
      await enqueue(() => this.predict());
      this.state = "done";
      this.page.lastEvent = `${this.name}: ${this.summary}`;
      this.explain();
    } catch (error) {
      if (this.abort.signal.aborted) return;
      this.state = "failed";
      this.page.lastEvent = `${this.name}: failed`;
      this.showError(this.prediction, error, () => this.run());
    }
    this.page.updateStatus();
  }

  async predict() {
    this.abort.signal.throwIfAborted();
    this.showBusy(this.prediction, "Predicting.");
    this.model = this.page.model();
    const started = performance.now();
    const fields = { top: this.model.task === "classify" ? TOP_CLASSES : "", min_score: this.model.min_score ?? "" };
    const response = await this.post("predict", fields, "application/json", this.prediction);
    const { predictions: [result] } = await response.json();
    if (result.error) throw new RequestError(result.error.message);
    this.result = result;
    this.selected = null;
    if (result.segments) await this.showSegmentation();
    this.showPrediction(performance.now() - started);
  }

  // The JSON of segments has no pixels, so that the server draws them.
  async showSegmentation() {
    const response = await this.post("predict", {}, "image/png", this.prediction);
    this.setFigure(await this.zoomableImage(response, `Segmentation of ${this.name}`));
  }

  async zoomableImage(response, name) {
    const source = URL.createObjectURL(await response.blob());
    const image = element("img", { alt: name, src: source });
    await image.decode();
    return zoomable(image, name, () => image.cloneNode());
  }

  async post(path, fields, accept, target) {
    checkSize(this.file, this.page.limits);
    const response = await call(path, {
      body: this.form({ model: this.model.name, ...fields }), accept, signal: this.abort.signal,
      onStatus: (message, kind) => {
        this.showBusy(target, message || "Sending the request.");
        if (kind) this.page.showProblem(message);
      },
    });
    this.page.showProblem("");
    return response;
  }

  form(fields) {
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) if (value !== "") form.append(name, value);
    form.append("image", this.file, this.name);
    return form;
  }

  showPrediction(elapsedMs) {
    const { width, height, classes, detections, segments } = this.result;
    const size = this.bitmap ? [this.bitmap.width, this.bitmap.height] : [width, height];
    const { inference_ms, batch_size } = this.result.timings;
    const batch = batch_size > 1 ? `, batch of ${batch_size}` : "";
    const model = this.page.models.length > 1 ? ` · ${this.model.name}` : "";
    const times = `${formatTime(elapsedMs)} total, ${formatTime(inference_ms)} inference${batch}`;
    this.info.textContent = `${size[0]} × ${size[1]} px${model} · ${times}`;
    if (classes) this.showClasses(classes);
    else if (detections) this.showDetections();
    else this.showSegments(segments);
  }

  setSummary(summary) {
    this.summary = summary;
    this.canvas?.setAttribute("aria-label", `${this.name}: ${summary}`);
  }

  showClasses(classes) {
    const [best] = classes;
    this.setSummary(`${best.label}, ${formatPercent(best.score)}`);
    const rows = classes.map(({ label, score }) => makeRow(score, label, formatPercent(score)));
    this.prediction.replaceChildren(headline(best.label, formatPercent(best.score)), listOf("Top classes", rows));
  }

  // The detections from the score threshold on, numbered from the best one.
  showDetections() {
    const threshold = this.page.scoreThreshold();
    const kept = this.result.detections.filter(({ score }) => score >= threshold);
    this.detections = kept.map((detection, place) => ({ ...detection, number: place + 1 }));
    this.selected = null;
    const hidden = this.result.detections.length - kept.length;
    const counts = new Map();
    for (const { label } of kept) counts.set(label, (counts.get(label) ?? 0) + 1);
    const labels = [...counts].map(([label, count]) => (count > 1 ? `${count} × ${label}` : label));
    this.setSummary(labels.join(", ") || "no detections");
    const total = kept.length === 1 ? "1 detection" : `${kept.length || "No"} detections`;
    const rows = this.detections.map((detection) => this.detectionRow(detection));
    const below = hidden ? `${hidden} below the score threshold` : "";
    this.prediction.replaceChildren(headline(total, below), listOf("Detections", rows));
    this.drawSelected();
  }

  detectionRow(detection) {
    const { score, label, index, number } = detection;
    const row = makeRow(score, label, formatPercent(score), { index, number, button: true });
    const button = row.firstChild;
    const highlight = () => this.drawSelected(detection);
    const restore = () => this.drawSelected();
    button.addEventListener("pointerenter", highlight);
    button.addEventListener("focus", highlight);
    button.addEventListener("pointerleave", restore);
    button.addEventListener("blur", restore);
    button.addEventListener("click", () => {
      this.selected = this.selected === detection ? null : detection;
      for (const other of this.prediction.querySelectorAll("button[aria-pressed]")) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(this.selected === detection));
      this.drawSelected();
    });
    return row;
  }

  drawSelected(detection = this.selected) {
    if (this.bitmap) drawDetections(this.canvas, this.bitmap, this.detections, { selected: detection });
  }

  showSegments(segments) {
    const present = segments.filter(({ area }) => area > 0).sort((one, other) => other.fraction - one.fraction);
    this.setSummary(present.slice(0, 3).map(({ label, fraction }) => `${label} ${formatPercent(fraction)}`).join(", "));
    const rows = present.map(({ fraction, label, index }) => makeRow(fraction, label, formatPercent(fraction), { index }));
    const total = present.length === 1 ? "1 segment" : `${present.length} segments`;
    this.prediction.replaceChildren(headline(total, "by fraction of the image"), listOf("Segments", rows));
  }

  // Request the selected explanation, unless it is shown already.
  async explain() {
    const selection = this.page.explainOptions();
    const options = JSON.stringify(selection);
    if (this.state !== "done" || options === this.explained) return;
    this.explained = options;
    this.body.classList.toggle("with-map", selection?.kind === "cam");
    if (!selection) return this.explanation.replaceChildren();
    this.explanation.classList.toggle("wide", selection.kind === "lka");
    this.showBusy(this.explanation, "Explaining.");
    const isCurrent = () => this.explained === options;
    try {
      const response = await enqueue(() => this.post("explain", selection, "image/png", this.explanation));
      const content = await this.zoomableImage(response, explanationName(this, selection));
      if (isCurrent()) this.explanation.replaceChildren(explanationFigure(content, selection));
    } catch (error) {
      if (this.abort.signal.aborted || !isCurrent()) return;
      this.showError(this.explanation, error, () => { this.explained = null; this.explain(); });
    }
  }

  remove() {
    this.abort.abort(new Error("removed"));
    const neighbor = this.root.nextElementSibling ?? this.root.previousElementSibling;
    this.root.remove();
    this.bitmap?.close();
    this.page.onRemoved(this, neighbor);
  }
}

function headline(text, detail) {
  return element("p", { className: "headline" }, element("bdi", { text }), " ", element("small", { text: detail }));
}

function listOf(name, rows) {
  return element("ol", { className: "rows", "aria-label": name }, ...rows);
}

// A row with a bar of length `fraction`. With a class `index`, it has a badge in the class color, which shows `number` if
// the image has a badge with the same number.
function makeRow(fraction, label, value, { index = null, number = null, button = false } = {}) {
  const cells = [element("bdi", { text: label }), element("span", { className: "value", text: value })];
  if (index !== null) {
    const badge = number === null ? { "aria-hidden": "true" } : { text: String(number) };
    cells.unshift(element("span", { className: "badge", ...badge }));
  }
  const line = button
    ? element("button", { className: "row", type: "button", "aria-pressed": "false" }, ...cells)
    : element("div", { className: "row" }, ...cells);
  const row = element("li", {}, line);
  row.style.setProperty("--fraction", Math.min(1, Math.max(0, fraction)));
  if (index !== null) {
    const color = classColor(index);
    row.style.setProperty("--class-color", cssColor(color));
    row.style.setProperty("--badge-text", textColor(color));
    row.style.setProperty("--bar", cssColor(color));
  }
  return row;
}

const explanationName = (card, options) => (options.kind === "lka"
  ? `LKA attention maps of ${card.name}`
  : `Class activation map of ${options.classes || "the top class"} in ${card.name}`);

function explanationFigure(content, options) {
  const caption = options.kind === "cam" ? "Class activation map: the stronger the color, the larger the contribution." : "Attention maps of large kernel attention, by stage.";
  return element("figure", {}, content, element("figcaption", { text: caption }));
}

function checkSize(file, limits) {
  if (file.size > limits.max_body_bytes) {
    const [size, most] = [formatMegabytes(file.size), formatMegabytes(limits.max_body_bytes)];
    throw new RequestError(`The file is too large: ${size}, expected at most ${most}.`);
  }
}
