"use strict";
// Everything here adds to a page that is whole without it: sorting, filtering, touched points, copying.
(() => {
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const table = document.getElementById("variants-table");

  // ── sorting: numbers by value, what is missing last, ties as they were ──
  const key = (row, column) => {
    const raw = row.cells[column].dataset.sort;
    if (raw === "") return null;
    const number = Number(raw);
    return row.cells[column].classList.contains("num") && !Number.isNaN(number) ? number : raw;
  };
  const sortBy = (column, ascending) => {
    const rows = all("tbody tr", table);
    rows.sort((a, b) => {
      const x = key(a, column), y = key(b, column);
      if (x === null || y === null) return (x === null) - (y === null);
      const order = typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
      return ascending ? order : -order;
    });
    table.tBodies[0].append(...rows);
    all("thead th", table).forEach((th, index) => {
      th.setAttribute("aria-sort", index !== column ? "none" : ascending ? "ascending" : "descending");
    });
  };
  const filters = { target: "", status: "" };
  const find = document.getElementById("find");
  const applyFilters = () => {
    const wanted = find ? find.value.trim().toLowerCase() : "";
    let shown = 0;
    for (const row of all("tbody tr", table)) {
      const fits = Object.entries(filters).every(([name, value]) => !value || row.dataset[name] === value)
        && row.cells[0].textContent.toLowerCase().includes(wanted);
      row.hidden = !fits;
      shown += fits;
    }
    for (const other of all("figure[data-target], #details > details")) {
      other.hidden = Boolean(filters.target) && other.dataset.target !== filters.target;
    }
    document.getElementById("shown").textContent = `${shown} shown`;
  };

  if (table) {
    const recorded = all("tbody tr", table);
    const headings = all("thead th", table);
    headings.forEach((th, column) => {
      th.firstElementChild.addEventListener("click", () => {
        const now = th.getAttribute("aria-sort");
        const first = th.firstElementChild.dataset.best !== "high";
        sortBy(column, now === "none" ? first : now !== "ascending");
      });
    });
    const chooser = document.getElementById("sort");
    chooser.addEventListener("change", () => {
      if (chooser.value !== "") {
        const column = Number(chooser.value);
        sortBy(column, headings[column].firstElementChild.dataset.best !== "high");
        return;
      }
      table.tBodies[0].append(...recorded);
      headings.forEach((th) => th.setAttribute("aria-sort", "none"));
    });
    for (const button of all("button[data-filter]")) {
      button.addEventListener("click", () => {
        filters[button.dataset.filter] = button.dataset.value;
        for (const chip of all(`button[data-filter="${button.dataset.filter}"]`)) {
          chip.setAttribute("aria-pressed", String(chip === button));
        }
        applyFilters();
      });
    }
    find.addEventListener("input", applyFilters);
    document.querySelector(".controls").hidden = false;
  }

  // ── touched marks tell all: by mouse, finger, or arrow keys ──
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);
  const words = (mark) => (mark.matches("[aria-label]") ? mark : mark.querySelector("[aria-label]")).getAttribute("aria-label");
  let touched = null;
  const show = (mark) => {
    touched = mark;
    tip.textContent = words(mark);
    tip.hidden = false;
    const box = mark.getBoundingClientRect();
    const left = Math.min(box.left + box.width / 2 + 12, document.documentElement.clientWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 10;
    tip.style.left = `${window.scrollX + Math.max(8, left)}px`;
    tip.style.top = `${window.scrollY + (above > 4 ? above : box.bottom + 10)}px`;
  };
  const hide = () => { tip.hidden = true; touched = null; };
  for (const svg of all(".chart svg")) {
    const links = all("a", svg);
    const bare = all('[role="graphics-symbol"][aria-label]:not([aria-roledescription="axis"])', svg).filter((m) => !m.closest("a"));
    const marks = links.length ? links : bare;
    marks.forEach((mark, index) => {
      mark.setAttribute("tabindex", index ? "-1" : "0");
      mark.addEventListener("pointerenter", () => show(mark));
      mark.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") hide(); });
      mark.addEventListener("focus", () => show(mark));
      mark.addEventListener("blur", hide);
      mark.addEventListener("pointerdown", (event) => {
        mark.dataset.armed = String(event.pointerType !== "touch" || touched === mark);
      });
      mark.addEventListener("click", (event) => {
        if (mark.dataset.armed === "false") { event.preventDefault(); show(mark); }
      });
      mark.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (event.key === "Escape") hide();
        if (!step) return;
        event.preventDefault();
        const next = marks[(index + step + marks.length) % marks.length];
        mark.setAttribute("tabindex", "-1");
        next.setAttribute("tabindex", "0");
        next.focus();
      });
    });
  }
  document.addEventListener("pointerdown", (event) => { if (!event.target.closest(".chart")) hide(); });

  // ── links into folded parts open them; printing opens all but what repeats a picture ──
  const reveal = () => {
    const goal = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (goal && goal.tagName === "DETAILS") { goal.hidden = false; goal.open = true; goal.scrollIntoView(); }
  };
  window.addEventListener("hashchange", reveal);
  reveal();
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = all("details:not([open]):not(.aside)");
    opened.forEach((part) => { part.open = true; });
  });
  window.addEventListener("afterprint", () => opened.forEach((part) => { part.open = false; }));

  // ── copying a command ──
  for (const button of all("button[data-copy]")) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(button.dataset.copy); button.textContent = "copied"; }
      catch { button.textContent = "select and copy"; }
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
  }
})();
