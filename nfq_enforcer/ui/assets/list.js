// List: the accessible twin of the drawing. One row is in the tab order, arrow keys go on from it.

const PAGE = 200;  // rows that a list has until more are asked for

export class List {
  // render(item) returns the children of the row of an item, a list of nodes and texts; keyOf(item) names it.
  constructor(root, more, { keyOf, signature, render, onOpen }) {
    Object.assign(this, { root, more, keyOf, signature, render });
    this.rows = new Map();  // by key: {entry, button, signature}
    this.shown = PAGE;
    this.items = [];
    this.current = null;
    more.addEventListener("click", () => {
      this.shown += PAGE;
      this.update(this.items);
      this.buttons()[this.shown - PAGE]?.focus();
    });
    root.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) onOpen(button.dataset.key, button);
    });
    root.addEventListener("keydown", (event) => this.move(event));
    root.addEventListener("focusin", (event) => this.setTabStop(event.target.closest("button")));
  }

  buttons() {
    return [...this.root.querySelectorAll("button")];
  }

  // items are in their order; a row whose signature is the same is not touched.
  update(items) {
    this.items = items;
    const visible = items.slice(0, this.shown);
    const keys = new Set(visible.map(this.keyOf));
    for (const [key, row] of this.rows) {
      if (keys.has(key)) continue;
      const focused = row.button === document.activeElement;
      const next = row.entry.nextElementSibling ?? row.entry.previousElementSibling;
      row.entry.remove();
      this.rows.delete(key);
      if (focused) next?.querySelector("button").focus();
    }
    visible.forEach((item, place) => this.put(item, place));
    this.more.hidden = items.length <= this.shown;
    this.more.textContent = `Show ${Math.min(PAGE, items.length - this.shown)} more of ${items.length}`;
    if (!this.root.querySelector('[tabindex="0"]')) this.setTabStop(this.root.querySelector("button"));
  }

  put(item, place) {
    const key = this.keyOf(item), signature = this.signature(item);
    let row = this.rows.get(key);
    if (!row) {
      const entry = document.createElement("li"), button = document.createElement("button");
      button.type = "button";
      button.className = "row";
      button.tabIndex = -1;
      button.dataset.key = key;
      entry.append(button);
      row = { entry, button, signature: null };
      this.rows.set(key, row);
    }
    if (row.signature !== signature) {
      row.signature = signature;
      row.button.replaceChildren(...this.render(item));
    }
    if (this.root.children[place] !== row.entry) this.root.insertBefore(row.entry, this.root.children[place] ?? null);
    this.mark(row, key === this.current);
  }

  mark(row, current) {
    if (current) row.button.setAttribute("aria-current", "true");
    else row.button.removeAttribute("aria-current");
  }

  choose(key) {
    this.current = key;
    for (const [other, row] of this.rows) this.mark(row, other === key);
    this.rows.get(key)?.entry.scrollIntoView({ block: "nearest" });
  }

  move(event) {
    const buttons = this.buttons(), place = buttons.indexOf(document.activeElement);
    const target = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (target === undefined || place < 0) return;
    event.preventDefault();
    buttons[Math.max(0, Math.min(buttons.length - 1, target))].focus();
  }

  setTabStop(button) {
    if (!button) return;
    for (const other of this.root.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    button.tabIndex = 0;
  }
}
