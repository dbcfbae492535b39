// The page of van serve: what is chosen, and a card for each picture (card.js). What talks with the server is in
// api.js. Nothing is kept when the page is closed.

import { call, whenKeyIsWanted } from "./api.js";
import { Card, element } from "./card.js";

const $ = (id) => document.getElementById(id);
const cards = new Set();

const page = {
  networks: [],
  limits: {},
  draws: true,
  lastWords: "",
  network: () => page.networks.find(({ name }) => name === $("model").value) ?? page.networks[0],
  leastScore: () => Number($("score").value),
  wish,
  problem,
  report,
  removed(card, after) {
    cards.delete(card);
    (after?.querySelector(".away") ?? $("files")).focus();
    report();
  },
};
page.known = new Promise((resolve) => { page.ready = resolve; });

// What is to be explained, or null.
function wish() {
  const kind = new FormData($("choices")).get("kind");
  if (!kind) return null;
  if (kind === "lka") return { kind };
  return { kind, classes: $("class").value.trim(), method: $("method").value, layer: $("layer").value.trim() };
}

function problem(words) {
  $("problem").hidden = !words;
  const shown = $("problem").firstChild?.textContent ?? "";
  if (words !== shown) $("problem").replaceChildren(...(words ? [element("p", { text: words })] : []));
}

function report() {
  const count = (state) => [...cards].filter((card) => card.state === state).length;
  const parts = [[count("answered"), "answered"], [count("waiting"), "waiting"], [count("failed"), "failed"]];
  const numbers = parts.filter(([number]) => number).map(([number, word]) => `${number} ${word}`).join(", ");
  $("status").textContent = cards.size ? `${numbers}. ${page.lastWords}` : "No picture yet.";
  $("clear").hidden = cards.size === 0;
}

async function take(files) {
  const fresh = [...files].map((file) => new Card(file, page));
  for (const card of fresh.toReversed()) { // the first ends up on top
    cards.add(card);
    $("answers").prepend(card.place);
  }
  report();
  for (const card of fresh) {
    await card.show();
    card.ask();
  }
}

function askForKey(wasWrong) {
  $("key-title").textContent = wasWrong ? "The server does not take this key" : "This server asks for a key";
  $("key").value = "";
  $("key-dialog").showModal();
  return new Promise((resolve) => {
    $("key-dialog").addEventListener("close", () => {
      const given = $("key-dialog").returnValue === "use" ? $("key").value.trim() : "";
      $("key").value = "";
      $("key-dialog").returnValue = "";
      resolve(given || null);
    }, { once: true });
  });
}

const TASKS = { classify: "names what a picture shows", detect: "finds things", instances: "finds things and outlines them",
  segment: "says what each pixel is", panoptic: "tells things and ground apart" };

// Choices that the chosen network has.
function fit() {
  const network = page.network();
  const seen = network.size_px ? `, seen at ${network.size_px} × ${network.size_px} px` : "";
  const classes = network.labels.length === 1 ? "1 class" : `${network.labels.length} classes`;
  $("about").replaceChildren(element("bdi", { text: network.name }), ` ${TASKS[network.task] ?? ""}: ${classes}${seen}.`);
  for (const kind of ["maps", "lka"]) {
    const choice = $("choices").querySelector(`[value=${kind}]`);
    choice.disabled = !(kind === "maps" ? network.methods : network.blocks).length;
    choice.closest("label").hidden = choice.disabled;
    if (choice.disabled && choice.checked) $("choices").querySelector('[value=""]').checked = true;
  }
  $("kinds").hidden = !network.methods.length && !network.blocks.length;
  $("map-fields").hidden = new FormData($("choices")).get("kind") !== "maps";
  fill($("labels"), network.labels.slice(0, 2000));
  const kept = $("method").value;
  fill($("method"), network.methods, element("option", { value: "", text: "the usual one" }));
  $("method").value = network.methods.includes(kept) ? kept : "";
  fill($("layers"), [...new Set(network.blocks.map((name) => name.split(".")[0])), ...network.blocks]);
  $("score-field").hidden = network.least_score === null;
  $("score").min = network.least_score ?? 0;
}

function fill(list, values, ...first) {
  list.replaceChildren(...first, ...values.map((value) => element("option", { value, text: value })));
}

async function begin() {
  try {
    const found = await (await call("models", { tell: (words, kind) => problem(kind ? words : "") })).json();
    page.networks = found.models;
    page.limits = found.limits;
    $("version").textContent = found.version;
    fill($("model"), page.networks.map(({ name }) => name));
    $("model").value = found.default;
    $("model-field").hidden = page.networks.length < 2;
    problem("");
    fit();
    page.ready();
  } catch (error) {
    const again = element("button", { type: "button", className: "again", text: "Try again" });
    again.addEventListener("click", () => { problem(""); begin(); });
    problem(error.message);
    $("problem").append(again);
  }
}

whenKeyIsWanted(askForKey);
$("files").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
$("choices").addEventListener("submit", (event) => event.preventDefault());
$("choices").addEventListener("change", (event) => {
  fit();
  if (event.target === $("model")) for (const card of cards) card.ask();
  else if (event.target !== $("score")) for (const card of cards) card.explain();
});
$("score").addEventListener("input", () => {
  $("score-value").textContent = Number($("score").value).toFixed(2);
  for (const card of cards) if (card.answer?.things && card.state === "answered") card.showThings();
});
$("clear").addEventListener("click", () => { for (const card of [...cards]) card.remove(); $("files").focus(); });

const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
let over = 0;
addEventListener("dragenter", (event) => { if (hasFiles(event)) document.body.classList.toggle("over", ++over > 0); });
addEventListener("dragleave", (event) => { if (hasFiles(event)) document.body.classList.toggle("over", --over > 0); });
addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  over = 0;
  document.body.classList.remove("over");
  take(event.dataTransfer.files);
});
addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) { event.preventDefault(); take(files); }
});
begin();
