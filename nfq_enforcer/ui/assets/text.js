// Text of the page: elements whose content is always set as text, never as HTML, and values as people read them.

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));  // a string becomes a text node
  return made;
}

// Names may have letters of any script: isolated, none changes the order of the text around it.
export const name = (text) => element("bdi", {}, text);

export const clockTime = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });

export function dayTime(seconds) {
  const date = new Date(seconds * 1000);
  const day = date.toDateString() === new Date().toDateString() ? "" : `${date.toLocaleDateString()} `;
  return day + date.toLocaleTimeString([], { hour12: false });
}

export function rate(perSecond) {
  if (!perSecond) return "";
  return perSecond >= 1 ? `${perSecond.toFixed(1)}/s` : `${Math.max(1, Math.round(perSecond * 60))}/min`;
}

export function ports(edge, atMost = 3) {
  const more = edge.ports.length - atMost + (edge.other_ports ? 1 : 0);
  return edge.ports.slice(0, atMost).join(", ") + (more > 0 ? ` and ${edge.other_ports ? "more" : `${more} more`}` : "");
}

export const plural = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
