// Creation of DOM elements and formatting of numbers. Text is always set as text, never as HTML.

export function element(tag, { className = "", text = "", ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function formatPercent(fraction) {
  return fraction >= 1 ? "100 %" : `${Math.min(99.9, 100 * fraction).toFixed(1)} %`;
}

export function formatTime(ms) {
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  return ms < 2000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

export function formatMegabytes(bytes) {
  return `${(bytes / 2 ** 20).toFixed(bytes < 2 ** 20 ? 2 : 1)} MB`;
}
