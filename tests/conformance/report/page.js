// Opens what a link leads to, opens everything in print, and filters. Without it a page shows everything.
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  const named = () => {
    try { return decodeURIComponent(location.hash.slice(1)); } catch { return ""; }  // such as "#%"
  };
  const openTarget = () => {
    const target = document.getElementById(named());
    if (!target) return;
    for (let node = target; node; node = node.parentElement) {
      node.hidden = false;
      if (node.localName === "details") node.open = true;
    }
    target.scrollIntoView();
  };

  const find = document.querySelector(".find");
  const items = all("[data-marks]");
  const texts = new Map();
  const openedByFilter = new Set();
  const filter = () => {
    const words = find.querySelector("input[type=search]").value.toLowerCase().split(/\s+/).filter(Boolean);
    const marks = all("input[type=checkbox]:checked", find).map((box) => box.value);
    let shown = 0;
    for (const item of items) {
      if (words.length && !texts.has(item)) texts.set(item, item.textContent.toLowerCase());
      const hasWords = words.every((word) => texts.get(item).includes(word));
      const hasMark = !marks.length || item.dataset.marks.split(",").some((mark) => marks.includes(mark));
      item.hidden = !(hasWords && hasMark);
      shown += !item.hidden;
    }
    const isFiltered = words.length || marks.length;
    for (const group of all("[data-group]").reverse()) {
      const own = all("[data-marks]", group);
      group.hidden = own.every((item) => item.hidden);
      if (group.localName === "details" && isFiltered && !group.hidden && !group.open) {
        group.open = true;
        openedByFilter.add(group);
      }
    }
    if (!isFiltered) for (const group of openedByFilter) group.open = false;
    if (!isFiltered) openedByFilter.clear();
    find.querySelector("output").textContent = isFiltered ? `${shown} of ${items.length}` : "";
  };

  const opened = [];
  addEventListener("beforeprint", () => {
    for (const details of all("details:not([open])")) opened.push(details), (details.open = true);
  });
  addEventListener("afterprint", () => { for (const details of opened.splice(0)) details.open = false; });
  addEventListener("hashchange", openTarget);
  addEventListener("keydown", (event) => {
    const isTyping = event.target.localName === "input" && event.target.type === "search";
    if (event.key === "/" && find && !isTyping) find.querySelector("input").focus(), event.preventDefault();
    if (event.key === "Escape" && isTyping) (event.target.value = ""), filter();
  });
  if (find) {
    find.hidden = false;
    find.addEventListener("input", filter);
    filter();
  }
  openTarget();
})();
