// The API documentation: every endpoint of the OpenAPI document, each with a form that sends a request (try_it.js).

import { call } from "./api.js";
import { element } from "./dom.js";
import { installKeyDialog } from "./key_dialog.js";
import { tryItForm } from "./try_it.js";

const $ = (id) => document.getElementById(id);

function endpointId(method, path) {
  return `${method}${path}`.replace(/[^a-z0-9]+/gi, "-").replace(/-$/, "");
}

function heading(method, path) {
  return [element("span", { className: `method ${method}`, text: method.toUpperCase() }), " ", element("code", { text: path })];
}

function responseTable(responses) {
  const rows = Object.entries(responses).map(([status, { description, content = {} }]) => element("tr", {},
    element("th", { scope: "row", text: status }), element("td", { text: description }),
    element("td", {}, element("code", { text: Object.keys(content).join(", ") }))));
  const head = element("tr", {}, ...["Status", "Description", "Content type"].map((text) => element("th", { scope: "col", text })));
  return element("details", {}, element("summary", { text: "Responses" }),
    element("div", { className: "scroll" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows))));
}

function endpointSection(method, path, operation, models) {
  const id = endpointId(method, path);
  const section = element("section", { className: "endpoint", id, "aria-labelledby": `${id}-title` },
    element("h2", { id: `${id}-title` }, ...heading(method, path)),
    element("p", { className: "summary", text: operation.summary ?? "" }));
  if (operation.description) section.append(element("p", { text: operation.description }));
  section.append(element("details", { className: "try-it" }, element("summary", { text: "Try it" }),
    tryItForm(id, method, path, operation, models)), responseTable(operation.responses ?? {}));
  return section;
}

async function loadDocument() {
  const problem = $("problem");
  try {
    const onStatus = (message) => { problem.hidden = !message; problem.textContent = message; };
    const { info, paths } = await (await call("openapi.json", { onStatus })).json();
    const { models, default: defaultModel } = await (await call("models", { onStatus })).json();
    const names = [defaultModel, ...models.map(({ name }) => name).filter((name) => name !== defaultModel)];
    $("version").textContent = info.version;
    const operations = Object.entries(paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, operation]) => [method, path, operation]));
    $("endpoints").replaceChildren(...operations.map(([method, path, operation]) => endpointSection(method, path, operation, names)));
    $("contents").replaceChildren(element("ul", {}, ...operations.map(([method, path]) =>
      element("li", {}, element("a", { href: `#${endpointId(method, path)}` }, ...heading(method, path))))));
    if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  } catch (error) {
    const retry = element("button", { type: "button", className: "retry", text: "Retry" });
    retry.addEventListener("click", () => { problem.hidden = true; loadDocument(); });
    problem.replaceChildren(element("p", { text: error.message }), retry);
    problem.hidden = false;
    $("endpoints").replaceChildren();
  }
}

installKeyDialog();
loadDocument();
