"use strict";
// The photos of the page: filters, a grid of which only the rows in view exist, a dialog for one photo. Text of the data
// becomes text nodes only.
(() => {
  const $ = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const data = JSON.parse($("data").textContent);
  const { evals, classes, photos } = data;
  const percent = (x) => (100 * x).toFixed(1) + "\u00a0%";

  // pictures: blocks of base64 lines, split when first looked at
  const blocks = [...document.getElementsByClassName("pictures")];
  const PER_BLOCK = 64;
  const split = new Map();
  const picture = (i) => {
    if (i < 0) return null;
    const b = Math.floor(i / PER_BLOCK);
    if (!split.has(b)) {
      split.set(b, blocks[b].textContent.split("\n"));
      if (split.size > 24) split.delete(split.keys().next().value);
    }
    const line = split.get(b)[i % PER_BLOCK];
    return line ? "data:image/jpeg;base64," + line : null;
  };

  // theme: what the system says, unless the reader chose
  const theme = $("theme");
  const themes = ["system", "light", "dark"];
  const store = (value) => {
    try {
      if (value === undefined) return localStorage.getItem("vlm-theme") || "system";
      localStorage.setItem("vlm-theme", value);
    } catch {
      // a page from a file may have no storage
    }
    return value || "system";
  };
  const setTheme = (value) => {
    if (value === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = value;
    theme.textContent = "Theme: " + value;
    theme.dataset.value = value;
  };
  theme.hidden = false;
  setTheme(themes.includes(store()) ? store() : "system");
  theme.addEventListener("click", () => {
    const next = themes[(themes.indexOf(theme.dataset.value) + 1) % themes.length];
    store(next);
    setTheme(next);
  });

  for (const place of document.querySelectorAll("[data-picture]")) {
    const source = picture(Number(place.dataset.picture));
    if (!source) {
      place.textContent = "no picture";
      continue;
    }
    const image = make("img");
    image.loading = "lazy";
    image.alt = "";
    image.src = source;
    place.append(image);
  }

  if (!$("grid")) return;

  // what is searched, once per photo
  const words = photos.map((photo) =>
    [photo.n, photo.l, ...photo.t, ...photo.a.flatMap((a) => (a ? [a.p, a.w || ""] : []))].join("\n").toLowerCase());

  const filters = {};
  for (const name of ["text", "eval", "verdict", "label", "prediction", "tag", "order"]) filters[name] = $("f-" + name);
  const option = (select, value, text) => {
    const element = make("option", "", text);
    element.value = value;
    select.append(element);
  };
  evals.forEach((name, i) => option(filters.eval, String(i), name));
  filters.eval.value = String(Math.max(0, evals.length - 1));
  filters.eval.querySelectorAll("option").forEach((o) => (o.defaultSelected = o.value === filters.eval.value));
  classes.forEach((name) => option(filters.label, name, name));
  const predictions = new Set(photos.flatMap((photo) => photo.a.flatMap((a) => (a ? [a.p] : []))));
  [...predictions].sort().forEach((name) => option(filters.prediction, name, name));
  // a number further up may be 0: a filter that no photo has is one all the same
  const tags = new Map([...document.querySelectorAll("button[data-tag]")].map((button) => [button.dataset.tag, 0]));
  photos.forEach((photo) => photo.t.forEach((tag) => tags.set(tag, (tags.get(tag) || 0) + 1)));
  [...tags.keys()].sort().forEach((tag) => option(filters.tag, tag, tag.replaceAll("_", " ") + " (" + tags.get(tag) + ")"));
  if (!tags.size) filters.tag.closest("label").hidden = true;

  const answer = (photo) => photo.a[Number(filters.eval.value)];
  const sureness = (a) => {
    if (!a || !a.q) return -1;
    // the name of a class can hold a comma itself
    const named = a.p in a.q ? [a.p] : a.p.split(", ");
    return Math.min(...named.map((name) => a.q[name] ?? 0));
  };
  const has = (list, name) => list === name || list.split(", ").includes(name);

  let shown = photos.map((_, i) => i);
  const apply = () => {
    const text = filters.text.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const { verdict, label, prediction, tag, order } = filters;
    shown = [];
    photos.forEach((photo, i) => {
      const a = answer(photo);
      if (verdict.value && (!a || String(a.r) !== verdict.value)) return;
      if (label.value && !has(photo.l, label.value)) return;
      if (prediction.value && (!a || a.p !== prediction.value)) return;
      if (tag.value && !photo.t.includes(tag.value)) return;
      if (!text.every((word) => words[i].includes(word))) return;
      shown.push(i);
    });
    if (order.value) {
      const sign = order.value === "sure" ? -1 : 1;
      const sure = new Map(shown.map((i) => [i, sureness(answer(photos[i]))]));
      shown.sort((a, b) => sign * (sure.get(a) - sure.get(b)) || a - b);
    }
    const judged = shown.filter((i) => answer(photos[i]));
    const right = judged.filter((i) => answer(photos[i]).r).length;
    let said = shown.length + " of " + photos.length + " photos";
    if (judged.length) said += "; " + evals[Number(filters.eval.value)] + " is right on " + right + " (" + percent(right / judged.length) + ")";
    $("count").textContent = said;
    active = 0;
    draw(true);
  };

  // the grid: only rows near the window exist
  const grid = $("grid");
  const GAP = 12;
  const TEXT = 92;
  let active = 0;
  let columns = 1;
  let cardWidth = 160;
  let rowHeight = 200;
  const cards = new Map();

  const measure = () => {
    const width = grid.clientWidth;
    columns = Math.max(2, Math.floor((width + GAP) / (176 + GAP)));
    cardWidth = Math.floor((width - GAP * (columns - 1)) / columns);
    rowHeight = Math.round(cardWidth * 0.75) + TEXT + GAP;
  };

  const card = (at) => {
    const photo = photos[shown[at]];
    const a = answer(photo);
    const item = make("div", "item");
    item.setAttribute("role", "listitem");
    item.setAttribute("aria-setsize", shown.length);
    item.setAttribute("aria-posinset", at + 1);
    const button = make("button", "card" + (a ? (a.r ? " right" : " wrong") : ""));
    button.type = "button";
    button.tabIndex = at === active ? 0 : -1;
    button.dataset.at = at;
    const frame = make("span", "frame");
    const source = picture(photo.i);
    if (source) {
      const image = make("img");
      image.decoding = "async";
      image.alt = "";
      image.src = source;
      frame.append(image);
    } else {
      frame.append(make("span", "none", "no picture"));
    }
    const text = make("span", "text");
    const line = make("span", "said");
    if (a) {
      line.append(make("span", "mark", a.r ? "✓ " : "✗ "), make("b", "", a.p));
      const sure = sureness(a);
      if (sure >= 0) line.append(" " + (100 * sure).toFixed(0) + " %");
    } else {
      line.append("not asked");
    }
    text.append(line);
    text.append(make("span", "label", "label " + photo.l));
    text.append(make("span", "tags", photo.t.map((t) => t.replaceAll("_", " ")).join(", ")));
    text.append(make("span", "file", photo.n.split("/").pop()));
    button.append(frame, text);
    const verdict = a ? (a.r ? "right" : "wrong") + ", predicted " + a.p : "not asked";
    button.setAttribute("aria-label", photo.n.split("/").pop() + ", label " + photo.l + ", " + verdict);
    item.append(button);
    return item;
  };

  const draw = (fresh) => {
    if (fresh) {
      cards.forEach((item) => item.remove());
      cards.clear();
      measure();
      grid.style.height = Math.max(0, Math.ceil(shown.length / columns) * rowHeight - GAP) + "px";
    }
    const top = -grid.getBoundingClientRect().top;
    // at least one row, also where none is in view: the Tab key needs one to go to
    const rows = Math.ceil(shown.length / columns);
    const within = (row) => Math.max(0, Math.min(rows - 1, row));
    const first = within(Math.floor(top / rowHeight) - 2) * columns;
    const last = Math.min(shown.length, (within(Math.ceil((top + innerHeight) / rowHeight) + 1) + 1) * columns);
    for (const [at, item] of cards) {
      if ((at < first || at >= last) && !item.contains(document.activeElement)) {
        item.remove();
        cards.delete(at);
      }
    }
    const fragment = document.createDocumentFragment();
    for (let at = first; at < last; at++) {
      if (cards.has(at)) continue;
      const item = card(at);
      item.style.width = cardWidth + "px";
      item.style.height = rowHeight - GAP + "px";
      item.style.transform =
        "translate(" + (at % columns) * (cardWidth + GAP) + "px," + Math.floor(at / columns) * rowHeight + "px)";
      cards.set(at, item);
      fragment.append(item);
    }
    grid.append(fragment);
    // one card can always be reached with the Tab key
    if (!cards.has(active) && last > first) {
      active = Math.min(first + 2 * columns, last - 1);
      cards.get(active).firstChild.tabIndex = 0;
    }
  };

  let asked = false;
  const later = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw(false);
    });
  };
  addEventListener("scroll", later, { passive: true });
  let width = 0;
  new ResizeObserver(() => {
    if (grid.clientWidth !== width) {
      width = grid.clientWidth;
      draw(true);
    }
  }).observe(grid);

  const focus = (at) => {
    if (at < 0 || at >= shown.length) return;
    cards.get(active)?.firstChild.setAttribute("tabindex", "-1");
    active = at;
    const top = grid.getBoundingClientRect().top + Math.floor(at / columns) * rowHeight;
    // the card has to be there before it can have the focus: no smooth way
    const go = (y) => scrollBy({ top: y, behavior: "instant" });
    if (top < 70) go(top - 70);
    else if (top + rowHeight > innerHeight) go(top + rowHeight - innerHeight);
    draw(false);
    const button = cards.get(at)?.firstChild;
    button?.setAttribute("tabindex", "0");
    button?.focus({ preventScroll: true });
  };
  grid.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(innerHeight / rowHeight)) * columns;
    const to = {
      ArrowRight: active + 1,
      ArrowLeft: active - 1,
      ArrowDown: active + columns,
      ArrowUp: active - columns,
      PageDown: Math.min(shown.length - 1, active + page),
      PageUp: Math.max(0, active - page),
      Home: 0,
      End: shown.length - 1,
    }[event.key];
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    focus(to);
  });
  grid.addEventListener("focusin", (event) => {
    const at = Number(event.target.dataset.at);
    if (at === active || Number.isNaN(at)) return;
    cards.get(active)?.firstChild.setAttribute("tabindex", "-1");
    active = at;
    event.target.tabIndex = 0;
  });

  // one photo
  const dialog = $("detail");
  let opened = 0;
  const open = (at) => {
    if (at < 0 || at >= shown.length) return;
    opened = at;
    const photo = photos[shown[at]];
    $("detail-h").textContent = photo.n.split("/").pop();
    const image = $("detail-image");
    const source = picture(photo.i);
    image.hidden = !source;
    if (source) image.src = source;
    image.alt = photo.n;
    const body = $("detail-body");
    body.replaceChildren();
    const facts = make("dl", "facts");
    const fact = (name, value) => facts.append(make("dt", "", name), make("dd", "", value));
    fact("Label", photo.l);
    if (photo.t.length) fact("Tags", photo.t.map((t) => t.replaceAll("_", " ")).join(", "));
    fact("File", photo.n);
    body.append(facts);
    photo.a.forEach((a, e) => {
      const part = make("section", a ? (a.r ? "right" : "wrong") : "");
      part.append(make("h3", "", evals[e]));
      const line = make("p", "said");
      if (a) line.append(make("span", "mark", a.r ? "✓ right: " : "✗ wrong: "), make("b", "", a.p));
      else line.append("not asked");
      part.append(line);
      if (a && a.w && a.w !== a.p) part.append(make("p", "written", "wrote: " + a.w));
      if (a && a.q) {
        const table = make("table", "odds");
        const sorted = Object.entries(a.q).sort((x, y) => y[1] - x[1]);
        for (const [name, p] of sorted.slice(0, 8)) {
          const row = make("tr");
          const head = make("th", "", name);
          head.scope = "row";
          const bar = make("td", "bar");
          const fill = make("span");
          fill.style.width = 100 * p + "%";
          bar.append(fill);
          row.append(head, bar, make("td", "n", percent(p)));
          table.append(row);
        }
        part.append(table);
      }
      body.append(part);
    });
    $("detail-previous").disabled = at === 0;
    $("detail-next").disabled = at === shown.length - 1;
    if (!dialog.open) dialog.showModal();
  };
  grid.addEventListener("click", (event) => {
    const button = event.target.closest(".card");
    if (button) open(Number(button.dataset.at));
  });
  $("detail-close").addEventListener("click", () => dialog.close());
  $("detail-previous").addEventListener("click", () => open(opened - 1));
  $("detail-next").addEventListener("click", () => open(opened + 1));
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") open(opened + 1);
    if (event.key === "ArrowLeft") open(opened - 1);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  // the browser gives the focus back to the photo that was opened first
  dialog.addEventListener("close", () => focus(opened));

  // filters, from the form and from the numbers further up
  const form = $("filters");
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "/" && !typing && !dialog.open && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      filters.text.focus();
    }
    if (event.key === "Escape" && event.target === filters.text && filters.text.value) {
      filters.text.value = "";
      apply();
    }
  });
  const show = (values) => {
    form.reset();
    for (const [name, value] of Object.entries(values)) filters[name].value = value;
    // the reset's own pass comes first
    setTimeout(() => {
      apply();
      $("gallery").scrollIntoView();
      filters.text.focus({ preventScroll: true });
    });
  };
  for (const button of document.querySelectorAll("button[data-tag]"))
    button.addEventListener("click", () => show({ tag: button.dataset.tag }));
  for (const button of document.querySelectorAll("button[data-prediction]")) {
    const { eval: evaluation, label, prediction } = button.dataset;
    button.addEventListener("click", () => show({ eval: evaluation, label, prediction }));
  }

  apply();
})();
