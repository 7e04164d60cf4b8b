"use strict";
// Headings of tables become buttons that sort the rows, and what can be scrolled sideways can be reached with the keyboard.
// Without this script the page is complete, its tables in their own order.
const number = (text) => {
  const found = text.replace(/,(?=\d{3})/g, "").replace(/\u2212/g, "-").match(/^[+-]?\d*\.?\d+(e[+-]?\d+)?/i);
  return found ? Number(found[0]) : NaN;
};
const words = new Intl.Collator("en", { numeric: true });
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") !== "ascending";
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].map((row) => ({ row, text: row.cells[column].textContent.trim() }));
      const absent = (text) => text === "" || text === "–";
      const numeric = rows.every(({ text }) => absent(text) || !Number.isNaN(number(text)));
      rows.sort((a, b) => {
        if (absent(a.text) || absent(b.text)) return absent(a.text) - absent(b.text);
        const apart = (numeric && number(a.text) - number(b.text)) || words.compare(a.text, b.text);
        return up ? apart : -apart;
      });
      table.tBodies[0].append(...rows.map(({ row }) => row));
      const order = up ? "ascending" : "descending";
      document.getElementById("sorted").textContent = `sorted by ${button.textContent}, ${order}`;
    });
  });
}
const reachable = () => {
  for (const area of document.querySelectorAll(".scroll, .picture")) {
    if (area.scrollWidth > area.clientWidth) area.setAttribute("tabindex", "0");
    else area.removeAttribute("tabindex");
  }
};
addEventListener("load", reachable);
addEventListener("resize", reachable);
