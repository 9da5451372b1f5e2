// Makes elements. Text only ever becomes text: nothing on this page parses HTML, whoever wrote it.

/** Makes an element; `on` maps events to listeners, `text` is its text, everything else is an attribute (null: none). */
export function el(name, { text, on = {}, ...attributes } = {}, ...children) {
  return furnish(document.createElement(name), { text, on, attributes, children });
}

export function svg(name, attributes = {}, ...children) {
  return furnish(document.createElementNS("http://www.w3.org/2000/svg", name), { attributes, children });
}

function furnish(node, { text, on = {}, attributes, children }) {
  for (const [key, value] of Object.entries(attributes)) if (value != null) node.setAttribute(key, value);
  for (const [event, listener] of Object.entries(on)) node.addEventListener(event, listener);
  if (text != null) node.textContent = text;
  node.append(...children.filter((child) => child != null));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Changes an element's text only where it differs, so that what a person has selected stays selected. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Says something to those who do not see the page. */
export const announce = (text) => setText(byId("announcer"), text);
