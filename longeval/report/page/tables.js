// Tables: sorted by a column, filtered by words, copied as they are shown.
"use strict";
{
  // Tables of fewer rows can be read at a glance.
  const LEAST_ROWS = 8;
  const FACTORS = { k: 1024, m: 1048576 };

  // The number that a cell begins with (`6.05`, `−9.5%`, `1.06e5`, `≥ 16k`), or NaN.
  const number = (text) => {
    const found = /^(?:[<>≥≤±]|below )?\s*([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)\s*([km])?(?![\w.])/i.exec(text.trim().replace("−", "-"));
    return found ? Number(found[1].replaceAll(",", "")) * (FACTORS[found[2]?.toLowerCase()] ?? 1) : NaN;
  };

  const valueOf = (row, column) => row.cells[column]?.querySelector(".v")?.textContent ?? "";

  // Smaller first; cells without a number come last, by their text, in both directions.
  const compare = (one, other, direction) => {
    const [a, b] = [number(one), number(other)];
    if (Number.isNaN(a) || Number.isNaN(b)) {
      return Number.isNaN(a) - Number.isNaN(b) || direction * one.localeCompare(other);
    }
    return direction * (a - b);
  };

  class Table {
    constructor(block) {
      this.block = block;
      this.left = Number(block.dataset.left);
      this.table = block.querySelector("table");
      this.body = this.table.tBodies[0];
      this.rows = [...this.body.rows];
      this.addSorting();
      this.addTools();
    }

    get isGrouped() {
      return this.rows.some((row) => row.classList.contains("group"));
    }

    // Rows under one heading; a table without headings is one such group.
    groups() {
      const groups = [];
      for (const row of this.rows) {
        if (row.classList.contains("group")) {
          groups.push({ heading: row, rows: [] });
        } else {
          if (groups.length === 0) {
            groups.push({ heading: null, rows: [] });
          }
          groups.at(-1).rows.push(row);
        }
      }
      return groups;
    }

    addSorting() {
      if (this.rows.length < 3) {
        return;
      }
      this.headers = [...this.table.tHead.rows[0].cells];
      this.headers.forEach((header, column) => {
        const name = header.textContent.trim() || "first column";
        const button = longeval.element("button", { type: "button", title: `Sort by ${name}` }, ...header.childNodes);
        if (!header.textContent.trim() && button.textContent === "") {
          button.setAttribute("aria-label", `Sort by ${name}`);
        }
        button.addEventListener("click", () => this.sort(column));
        header.replaceChildren(button);
      });
    }

    // Ascending, then descending, then as it was.
    sort(column) {
      const header = this.headers[column];
      const next = { ascending: "descending", descending: null }[header.getAttribute("aria-sort")];
      const order = next === undefined ? "ascending" : next;
      this.headers.forEach((other) => other.removeAttribute("aria-sort"));
      const sorted = [];
      for (const { heading, rows } of this.groups()) {
        const direction = order === "ascending" ? 1 : -1;
        const keyed = rows.map((row) => [valueOf(row, column), row]);
        const inOrder = order === null ? keyed : keyed.sort(([one], [other]) => compare(one, other, direction));
        sorted.push(...(heading ? [heading] : []), ...inOrder.map(([, row]) => row));
      }
      if (order !== null) {
        header.setAttribute("aria-sort", order);
      }
      this.body.replaceChildren(...sorted);
    }

    addTools() {
      const tools = longeval.element("div", { class: "tools" });
      if (this.rows.length > LEAST_ROWS) {
        const count = longeval.element("span", { class: "count", role: "status" });
        const box = longeval.element("input", { type: "search", placeholder: "Filter rows", "aria-label": "Filter rows", autocomplete: "off", spellcheck: "false" });
        box.addEventListener("input", () => {
          count.textContent = this.filter(box.value);
        });
        tools.append(box, count);
      }
      tools.append(longeval.element("span", { class: "what" }, "Copy as"));
      for (const [name, format] of Object.entries(longeval.tableFormats)) {
        const button = longeval.element("button", { type: "button", "aria-label": `Copy the table as ${name}` }, name);
        button.addEventListener("click", () => longeval.copy(format(this.content()), button));
        tools.append(button);
      }
      this.block.querySelector(".scroll").before(tools);
    }

    // Shows the rows that hold every word, and the headings above them; says how many there are.
    filter(text) {
      const words = text.toLowerCase().split(/\s+/).filter(Boolean);
      this.texts ??= new Map(this.rows.map((row) => [row, row.textContent.toLowerCase()]));
      let shown = 0;
      let total = 0;
      for (const { heading, rows } of this.groups()) {
        const above = heading ? this.texts.get(heading) : "";
        let inGroup = 0;
        for (const row of rows) {
          const isShown = words.every((word) => this.texts.get(row).includes(word) || above.includes(word));
          row.hidden = !isShown;
          inGroup += isShown;
        }
        if (heading) {
          heading.hidden = inGroup === 0;
        }
        shown += inGroup;
        total += rows.length;
      }
      return words.length ? `${shown} of ${total} rows` : "";
    }

    // What is shown, for the formats: columns, and rows of cells in the order on the screen.
    content() {
      const part = (cell, name) => cell.querySelector(`.${name}`)?.textContent.trim() ?? "";
      const rows = [...this.body.rows].filter((row) => !row.hidden).map((row) => {
        const isHeading = row.classList.contains("group");
        const cells = [...row.cells].map((cell) => ({
          text: isHeading ? cell.textContent.trim() : part(cell, "v"),
          interval: part(cell, "ci"),
          note: part(cell, "n"),
          mark: part(cell, "m"),
          isStrong: cell.querySelector("b.v") !== null,
        }));
        return { isHeading, cells };
      });
      const columns = [...this.table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
      return { columns, rows, left: this.left };
    }
  }

  longeval.startTables = () => {
    longeval.whenVisible(document.querySelectorAll(".table"), (block) => new Table(block));
    for (const listing of document.querySelectorAll(".listing")) {
      const button = longeval.element("button", { type: "button", class: "copy" }, "Copy");
      button.addEventListener("click", () => longeval.copy(listing.querySelector("code").textContent, button));
      listing.append(button);
    }
  };
}
