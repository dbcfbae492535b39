// The prediction page of van serve: the options, and a card for each image (card.js). Nothing is stored.

import { call } from "./api.js";
import { Card } from "./card.js";
import { element } from "./dom.js";
import { installKeyDialog } from "./key_dialog.js";

const $ = (id) => document.getElementById(id);
const cards = new Set();

const page = {
  models: [],
  limits: {},
  lastEvent: "",
  model: () => page.models.find(({ name }) => name === $("model").value) ?? page.models[0],
  scoreThreshold: () => Number($("score").value),
  explainOptions,
  showProblem,
  updateStatus,
  onRemoved(card, neighbor) {
    cards.delete(card);
    (neighbor?.querySelector(".remove") ?? $("files")).focus();
    updateStatus();
  },
};
page.modelsLoaded = new Promise((resolve) => { page.setModelsLoaded = resolve; });

// The selected explanation, or null.
function explainOptions() {
  const kind = new FormData($("options")).get("kind");
  if (!kind) return null;
  if (kind === "lka") return { kind };
  return { kind, classes: $("class").value.trim(), method: $("method").value, layer: $("layer").value.trim() };
}

function showProblem(message) {
  $("problem").hidden = !message;
  const shown = $("problem").firstChild?.textContent ?? "";
  if (message !== shown) $("problem").replaceChildren(...(message ? [element("p", { text: message })] : []));
}

function updateStatus() {
  const counts = ["done", "waiting", "failed"].map((state) => [[...cards].filter((card) => card.state === state).length, state]);
  const text = counts.filter(([count]) => count).map(([count, state]) => `${count} ${state}`).join(", ");
  $("status").textContent = cards.size ? `${text}. ${page.lastEvent}` : "No images yet.";
  $("clear").hidden = cards.size === 0;
}

async function addFiles(files) {
  const added = [...files].map((file) => new Card(file, page));
  for (const card of added.toReversed()) { // the first ends up on top
    cards.add(card);
    $("predictions").prepend(card.root);
  }
  updateStatus();
  for (const card of added) {
    await card.showImage();
    card.run();
  }
}

const TASKS = { classify: "Image classification", detect: "Object detection", instances: "Instance segmentation",
  segment: "Semantic segmentation", panoptic: "Panoptic segmentation" };

// Show the options that the selected model supports.
function updateOptions() {
  const model = page.model();
  $("title").textContent = TASKS[model.task] ?? "Prediction";
  document.title = `${$("title").textContent} – van serve`;
  const size = model.image_size ? `, input ${model.image_size} × ${model.image_size} px` : "";
  const classes = model.class_names.length === 1 ? "1 class" : `${model.class_names.length} classes`;
  $("about").replaceChildren("Model ", element("bdi", { text: model.name }), ` (${model.architecture}): ${classes}${size}`);
  for (const [kind, supported] of [["cam", model.methods], ["lka", model.blocks]]) {
    const choice = $("options").querySelector(`[value=${kind}]`);
    choice.disabled = !supported.length;
    choice.closest("label").hidden = choice.disabled;
    if (choice.disabled && choice.checked) $("options").querySelector('[value=""]').checked = true;
  }
  $("kinds").hidden = !model.methods.length && !model.blocks.length;
  $("cam-fields").hidden = new FormData($("options")).get("kind") !== "cam";
  fillList($("class-names"), model.class_names.slice(0, 2000));
  const selected = $("method").value;
  fillList($("method"), model.methods, element("option", { value: "", text: "Default" }));
  $("method").value = model.methods.includes(selected) ? selected : "";
  fillList($("layers"), [...new Set(model.blocks.map((name) => name.split(".")[0])), ...model.blocks]);
  $("score-field").hidden = model.min_score === null;
  $("score").min = model.min_score ?? 0;
}

function fillList(list, values, ...first) {
  list.replaceChildren(...first, ...values.map((value) => element("option", { value, text: value })));
}

async function loadModels() {
  try {
    const onStatus = (message, kind) => showProblem(kind ? message : "");
    const { models, limits, version, default: defaultModel } = await (await call("models", { onStatus })).json();
    page.models = models;
    page.limits = limits;
    $("version").textContent = version;
    fillList($("model"), models.map(({ name }) => name));
    $("model").value = defaultModel;
    $("model-field").hidden = models.length < 2;
    showProblem("");
    updateOptions();
    page.setModelsLoaded();
  } catch (error) {
    const retry = element("button", { type: "button", className: "retry", text: "Retry" });
    retry.addEventListener("click", () => { showProblem(""); loadModels(); });
    showProblem(error.message);
    $("problem").append(retry);
  }
}

installKeyDialog();
$("files").addEventListener("change", (event) => { addFiles(event.target.files); event.target.value = ""; });
$("options").addEventListener("submit", (event) => event.preventDefault());
$("options").addEventListener("change", (event) => {
  updateOptions();
  if (event.target === $("model")) for (const card of cards) card.run();
  else if (event.target !== $("score")) for (const card of cards) card.explain();
});
$("score").addEventListener("input", () => {
  $("score-value").textContent = Number($("score").value).toFixed(2);
  for (const card of cards) if (card.result?.detections && card.state === "done") card.showDetections();
});
$("clear").addEventListener("click", () => { for (const card of [...cards]) card.remove(); $("files").focus(); });

const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
let dragDepth = 0; // enter and leave events of nested elements come in pairs
addEventListener("dragenter", (event) => { if (hasFiles(event)) document.body.classList.toggle("dragging", ++dragDepth > 0); });
addEventListener("dragleave", (event) => { if (hasFiles(event)) document.body.classList.toggle("dragging", --dragDepth > 0); });
addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  dragDepth = 0;
  document.body.classList.remove("dragging");
  addFiles(event.dataTransfer.files);
});
addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) { event.preventDefault(); addFiles(files); }
});
loadModels();
