// A form that sends a request to one endpoint of the OpenAPI document and shows the response.

import { send } from "./api.js";
import { element, formatTime } from "./dom.js";
import { zoomable } from "./lightbox.js";

const MAX_SHOWN_CHARACTERS = 200_000;

const isFile = (schema) => schema?.format === "binary";
const isFileList = (schema) => schema?.type === "array" && isFile(schema.items);

function label(id, name, description, isRequired) {
  const text = element("label", { for: id }, element("code", { text: name }), isRequired ? " (required)" : "");
  return description ? [text, element("small", { id: `${id}-hint`, className: "soft", text: description })] : [text];
}

function select(attributes, choices) {
  return element("select", attributes, ...choices.map(([value, text]) => element("option", { value, text })));
}

// The input of one parameter or form field; arrays of text are entered with commas.
function inputFor(schema, attributes) {
  if (isFile(schema) || isFileList(schema)) {
    return element("input", { ...attributes, type: "file", ...(isFileList(schema) ? { multiple: "" } : {}) });
  }
  if (schema.enum) return select(attributes, [["", "Default"], ...schema.enum.map((value) => [value, value])]);
  if (schema.type === "integer" || schema.type === "number") {
    const { minimum, maximum } = schema;
    const limits = { ...(minimum === undefined ? {} : { min: minimum }), ...(maximum === undefined ? {} : { max: maximum }) };
    return element("input", { ...attributes, type: "number", step: schema.type === "integer" ? "1" : "any", ...limits });
  }
  const placeholder = schema.type === "array" ? { placeholder: "Separate several by commas" } : {};
  return element("input", { ...attributes, type: "text", autocapitalize: "off", spellcheck: "false", ...placeholder });
}

function field(id, name, schema, { description = schema.description, isRequired = false, value = "" } = {}) {
  const described = description ? { "aria-describedby": `${id}-hint` } : {};
  const input = inputFor(schema, { id, name, ...described, ...(isRequired ? { required: "" } : {}) });
  if (value) input.value = value;
  return { name, schema, input, node: element("div", { className: "field" }, ...label(id, name, description, isRequired), input) };
}

// The values of a field as strings, or files.
function valuesOf({ input, schema }) {
  if (input.type === "file") return [...input.files];
  const text = input.value.trim();
  if (!text) return [];
  return schema.type === "array" ? text.split(",").map((one) => one.trim()).filter((one) => one) : [text];
}

// The inputs of a body of one content type, and a function that returns the body and its headers.
function bodyInputs(id, contentType, content, isShownAlready) {
  if (contentType === "multipart/form-data") {
    const properties = Object.entries(content.schema.properties).filter(([name]) => !isShownAlready(name));
    const fields = properties.map(([name, schema]) => field(`${id}-body-${name}`, name, schema));
    const read = () => {
      const form = new FormData();
      for (const one of fields) for (const value of valuesOf(one)) form.append(one.name, value);
      return { body: form, headers: {} };
    };
    return { nodes: fields.map(({ node }) => node), read };
  }
  if (contentType.includes("json")) {
    const area = element("textarea", { id: `${id}-body`, rows: "8", spellcheck: "false", autocapitalize: "off" });
    area.value = JSON.stringify(content.example ?? {}, null, 2);
    const node = element("div", { className: "field" }, element("label", { for: area.id, text: "Body (JSON)" }), area);
    return { nodes: [node], read: () => ({ body: area.value, headers: { "Content-Type": contentType } }) };
  }
  const file = field(`${id}-body-file`, "file", { format: "binary" }, { description: "Image file", isRequired: true });
  const type = (given) => (contentType.includes("*") ? given || contentType : contentType);
  const read = () => ({ body: file.input.files[0], headers: { "Content-Type": type(file.input.files[0]?.type) } });
  return { nodes: [file.node], read };
}

function bodySection(id, requestBody, isShownAlready) {
  const types = Object.keys(requestBody.content);
  const chooser = select({ id: `${id}-content-type` }, types.map((type) => [type, type]));
  const holder = element("div", { className: "fields" });
  let current;
  const show = () => {
    current = bodyInputs(id, chooser.value, requestBody.content[chooser.value], isShownAlready);
    holder.replaceChildren(...current.nodes);
  };
  chooser.addEventListener("change", show);
  show();
  const choice = element("div", { className: "field" }, element("label", { for: chooser.id, text: "Content type of the body" }), chooser);
  return { nodes: [choice, holder], read: () => current.read() };
}

async function showResponse(target, response, elapsedMs) {
  const type = response.headers.get("Content-Type") ?? "";
  const status = element("p", { className: response.ok ? "status ok" : "status failed" },
    element("strong", { text: `${response.status} ${response.statusText}`.trim() }), ` · ${formatTime(elapsedMs)} · ${type || "no content"}`);
  if (type.startsWith("image/")) {
    const image = element("img", { alt: "Response image", src: URL.createObjectURL(await response.blob()) });
    await image.decode();
    return target.replaceChildren(status, zoomable(image, "response image", () => image.cloneNode()));
  }
  let text = await response.text();
  if (type.includes("json")) text = JSON.stringify(JSON.parse(text), null, 2);
  if (text.length > MAX_SHOWN_CHARACTERS) text = `${text.slice(0, MAX_SHOWN_CHARACTERS)}\n… ${text.length} characters in total`;
  target.replaceChildren(status, element("pre", { tabindex: "0", "aria-label": "Response body" }, element("code", { text })));
}

export function tryItForm(id, method, path, operation, models) {
  const parameters = (operation.parameters ?? []).map((one) => ({
    ...one,
    ...field(`${id}-${one.in}-${one.name}`, one.name, one.schema ?? {}, {
      description: one.description, isRequired: one.required, value: one.in === "path" ? models[0] : "",
    }),
  }));
  const isShownAlready = (name) => parameters.some((one) => one.name === name);
  const body = operation.requestBody ? bodySection(id, operation.requestBody, isShownAlready) : null;
  const types = Object.keys(operation.responses?.["200"]?.content ?? {});
  const accept = types.length > 1 ? select({ id: `${id}-accept` }, types.map((type) => [type, type])) : null;
  const button = element("button", { type: "submit", className: "main", text: "Send request" });
  const output = element("div", { className: "response", role: "region", "aria-label": `Response of ${method.toUpperCase()} ${path}`, "aria-live": "polite" });
  const form = element("form", { autocomplete: "off", className: "request" });
  if (body) form.append(...body.nodes);
  if (parameters.length) form.append(element("div", { className: "fields" }, ...parameters.map(({ node }) => node)));
  if (accept) form.append(element("div", { className: "field" }, element("label", { for: accept.id, text: "Accept" }), accept));
  form.append(element("p", { className: "buttons" }, button), output);

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    let url = path.slice(1); // relative, so that a proxy may serve the page under a prefix
    const query = new URLSearchParams();
    for (const parameter of parameters) {
      for (const value of valuesOf(parameter)) {
        if (parameter.in === "path") url = url.replace(`{${parameter.name}}`, encodeURIComponent(value));
        else query.append(parameter.name, value);
      }
    }
    if (query.size) url += `?${query}`;
    button.disabled = true;
    output.replaceChildren(element("p", { className: "busy soft", text: "Sending the request." }));
    try {
      const { body: content, headers = {} } = body?.read() ?? {};
      const started = performance.now();
      const options = { method: method.toUpperCase(), body: content, headers: { ...headers, Accept: accept?.value ?? "*/*" } };
      const response = await send(url, options);
      await showResponse(output, response, performance.now() - started);
    } catch (error) {
      const message = error instanceof TypeError ? "Cannot reach the server." : error.message;
      output.replaceChildren(element("p", { className: "error", role: "alert", text: message }));
    } finally {
      button.disabled = false;
    }
  });
  return form;
}
