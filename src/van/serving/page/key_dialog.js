// The dialog for the API key, shared by both pages.

import { onKeyRequired } from "./api.js";
import { element } from "./dom.js";

export function installKeyDialog() {
  const title = element("h2", { id: "key-title" });
  const input = element("input", { id: "key", type: "password", autocomplete: "off", spellcheck: "false", required: "" });
  const form = element("form", { method: "dialog", id: "key-form" }, title,
    element("p", { className: "soft", text: "The key is kept until this page is closed or reloaded, and is sent to this server only." }),
    element("p", { className: "field" }, element("label", { for: "key", text: "API key" }), input),
    element("p", { className: "buttons" },
      element("button", { type: "submit", className: "main", value: "use", text: "Use this key" }),
      element("button", { type: "submit", value: "cancel", formnovalidate: "", text: "Cancel" })));
  const dialog = element("dialog", { id: "key-dialog", "aria-labelledby": "key-title" }, form);
  document.body.append(dialog);
  onKeyRequired((wasInvalid) => {
    title.textContent = wasInvalid ? "Invalid API key" : "API key required";
    input.value = "";
    dialog.showModal();
    return new Promise((resolve) => {
      dialog.addEventListener("close", () => {
        const given = dialog.returnValue === "use" ? input.value.trim() : "";
        input.value = "";
        dialog.returnValue = "";
        resolve(given || null);
      }, { once: true });
    });
  });
}
