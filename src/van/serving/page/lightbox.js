// A dialog that shows one image as large as the window allows; a second step shows it at twice that size.
// It closes with Escape, its button, or a click beside the image; the browser then restores the focus.

import { element } from "./dom.js";

const UPSCALED_BELOW_PX = 640;

let dialog = null;

// The content security policy forbids style attributes in HTML, but not the properties of the style object.
function fit(media, scale) {
  const width = media.naturalWidth || media.width, height = media.naturalHeight || media.height;
  const roomX = innerWidth - 32, roomY = innerHeight - 112;
  const factor = Math.min(roomX / width, roomY / height) * scale;
  media.style.width = `${Math.max(1, Math.floor(width * factor))}px`;
  media.style.height = `${Math.max(1, Math.floor(height * factor))}px`;
}

function build() {
  const close = element("button", { type: "button", className: "lightbox-close", text: "Close" });
  const zoom = element("button", { type: "button", className: "lightbox-zoom", "aria-pressed": "false", text: "Zoom in" });
  const caption = element("p", { id: "lightbox-caption", className: "lightbox-caption" });
  const stage = element("div", { className: "lightbox-stage", tabindex: "0", role: "group", "aria-labelledby": "lightbox-caption" });
  const node = element("dialog", { className: "lightbox", "aria-labelledby": "lightbox-caption" },
    element("div", { className: "lightbox-bar" }, caption, zoom, close), stage);
  const state = { node, stage, caption, zoom, scale: 1 };
  const update = (scale) => {
    state.scale = scale;
    zoom.setAttribute("aria-pressed", String(scale > 1));
    zoom.textContent = scale > 1 ? "Zoom out" : "Zoom in";
    stage.classList.toggle("zoomed", scale > 1);
    if (stage.firstChild) fit(stage.firstChild, scale);
  };
  state.update = update;
  close.addEventListener("click", () => node.close());
  zoom.addEventListener("click", () => update(state.scale > 1 ? 1 : 2));
  stage.addEventListener("click", (event) => (event.target === stage ? node.close() : update(state.scale > 1 ? 1 : 2)));
  addEventListener("resize", () => { if (node.open) update(state.scale); });
  node.addEventListener("close", () => stage.replaceChildren());
  document.body.append(node);
  return state;
}

// `media` is a canvas or a loaded image that belongs to the dialog from now on.
export function openLightbox(media, name) {
  dialog ??= build();
  dialog.caption.textContent = name;
  media.setAttribute("aria-label", name);
  if (media instanceof HTMLCanvasElement) media.setAttribute("role", "img");
  dialog.stage.replaceChildren(media);
  dialog.node.showModal();
  dialog.update(1);
}

// A figure with `media` that opens a large version on a click, and a button that does the same by keyboard.
// `enlarge` returns the large version.
export function zoomable(media, name, enlarge) {
  const button = element("button", { type: "button", className: "zoom", "aria-label": `Enlarge ${name}`, text: "Enlarge" });
  if (media.naturalWidth < UPSCALED_BELOW_PX) { // a width of the image's own ratio, as tall as style.css allows
    media.classList.add("upscaled");
    media.style.width = `calc(min(46rem, 85vh) * ${media.naturalWidth / media.naturalHeight})`;
  }
  const open = () => openLightbox(enlarge(), name);
  media.addEventListener("click", open);
  button.addEventListener("click", open);
  return element("div", { className: "zoomable" }, media, button);
}
