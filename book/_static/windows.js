// The picture to play with in "Windows": choose the sizes, point at a cell, see what it is connected to.
// An output cell shows its window; an input cell shows the outputs that its gradient comes from.
// No library: the script fills every <figure class="pool-windows" data-sizes="H W oH oW">.
(() => {
  "use strict";
  const MAX = 9; // what fits the width of a phone

  const TEXT = {
    en: {
      sizes: "Sizes",
      H: "Input height H", W: "Input width W", oH: "Output height oH", oW: "Output width oW",
      input: (h, w) => `Input x, ${h} × ${w}`,
      output: (h, w) => `Output y, ${h} × ${w}`,
      caption: "Point at an output cell to see its window on the input. "
        + "Point at an input cell to see which windows hold it; the last line is its gradient, "
        + "made of the gradients g of those outputs. "
        + "By keyboard: Tab goes to a grid, the arrow keys walk through it. "
        + "Blue: the cell that you point at. Orange, underlined: what it is connected to.",
      window: (y, x, kh, kw) => `${y} is the mean of the window ${x}: ${kh} × ${kw} = ${kh * kw} elements.`,
      holders: (x, y, n) => n === 1 ? `${x} lies in one window, that of ${y}.` : `${x} lies in ${n} windows, those of ${y}.`,
      bounds: (rows, columns) => `Rows ${rows}; columns ${columns}.`,
      range: (from, to) => `from ${from} up to, not including, ${to}`,
      ones: v => `With every g = 1 that is ${v}.`,
    },
    zh: {
      sizes: "尺寸",
      H: "输入高度 H", W: "输入宽度 W", oH: "输出高度 oH", oW: "输出宽度 oW",
      input: (h, w) => `输入 x，${h} × ${w}`,
      output: (h, w) => `输出 y，${h} × ${w}`,
      caption: "指向一个输出格，可看到它在输入上的窗口。"
        + "指向一个输入格，可看到哪些窗口包含它；最后一行是它的梯度，由这些输出的梯度 g 求出。"
        + "键盘操作：用 Tab 键进入网格，用方向键移动。"
        + "蓝色：所指的格子。橙色带下划线：与它相连的格子。",
      window: (y, x, kh, kw) => `${y} 是窗口 ${x} 的平均值：${kh} × ${kw} = ${kh * kw} 个元素。`,
      holders: (x, y, n) => `${x} 位于 ${n} 个窗口中，即 ${y} 的窗口。`,
      bounds: (rows, columns) => `行：${rows}；列：${columns}。`,
      range: (from, to) => `从 ${from} 到 ${to}（不含）`,
      ones: v => `若每个 g = 1，则结果为 ${v}。`,
    },
  };
  const text = document.documentElement.lang.startsWith("zh") ? TEXT.zh : TEXT.en;

  // numba_pool/windows.py in integers: (a - a % b) / b is a // b without a rounded quotient.
  const floorDiv = (a, b) => (a - a % b) / b;
  const start = (o, O, I) => floorDiv(o * I, O);
  const end = (o, O, I) => floorDiv((o + 1) * I + O - 1, O);

  const slice = (name, [r0, r1], [c0, c1]) => `${name}[${r0}:${r1}, ${c0}:${c1}]`;
  const at = (name, r, c) => `${name}[${r}, ${c}]`;
  const sum = terms => (terms.length > 6 ? [...terms.slice(0, 3), "…", terms.at(-1)] : terms).join(" + ");
  const round = (v, digits) => String(Number(v.toFixed(digits)));
  const rounded = (v, digits) => (Number(v.toFixed(digits)) === v ? "= " : "≈ ") + round(v, digits);

  function element(tag, attributes = {}, ...children) {
    const e = document.createElement(tag);
    Object.entries(attributes).forEach(([k, v]) => e.setAttribute(k, v));
    e.append(...children);
    return e;
  }

  function picture(figure) {
    const size = {};
    const names = ["H", "W", "oH", "oW"];
    figure.dataset.sizes.split(" ").forEach((v, k) => { size[names[k]] = Number(v); });
    const grids = { x: element("table", { role: "grid" }), y: element("table", { role: "grid" }) };
    const said = element("div", { class: "said", "aria-live": "polite", "aria-atomic": "true" });

    const value = (i, j) => i * size.W + j; // the input counts 0, 1, 2, …
    const window_ = (oh, ow) => [
      [start(oh, size.oH, size.H), end(oh, size.oH, size.H)],
      [start(ow, size.oW, size.W), end(ow, size.oW, size.W)],
    ];
    const outputs = (i, j) => [ // the same formula, the sizes' roles swapped
      [start(i, size.H, size.oH), end(i, size.H, size.oH)],
      [start(j, size.W, size.oW), end(j, size.W, size.oW)],
    ];
    function each([[r0, r1], [c0, c1]], f) {
      const all = [];
      for (let r = r0; r < r1; r++) for (let c = c0; c < c1; c++) all.push(f(r, c));
      return all;
    }
    const total = (oh, ow) => each(window_(oh, ow), value).reduce((a, b) => a + b);
    const area = (oh, ow) => each(window_(oh, ow), () => 1).length;
    const bounds = (k, O, I) => text.range(
      `⌊${k}·${I}/${O}⌋ = ${start(k, O, I)}`, `⌈${k + 1}·${I}/${O}⌉ = ${end(k, O, I)}`);

    function fill(grid, name, rows, columns, content) {
      const head = element("tr", {}, element("td"),
        ...Array.from({ length: columns }, (_, c) => element("th", { scope: "col" }, String(c))));
      const body = Array.from({ length: rows }, (_, r) => element("tr", {},
        element("th", { scope: "row" }, String(r)),
        ...Array.from({ length: columns }, (_, c) => element("td",
          { role: "gridcell", tabindex: r + c ? -1 : 0, "data-r": r, "data-c": c }, content(r, c)))));
      grid.replaceChildren(
        element("caption", {}, name), element("thead", {}, head), element("tbody", {}, ...body));
    }

    function point(which, r, c) {
      const other = which === "y" ? "x" : "y";
      const connected = which === "y" ? window_(r, c) : outputs(r, c);
      figure.querySelectorAll("[role=gridcell]").forEach(e => { e.className = ""; });
      const cell = (grid, i, j) => grids[grid].querySelector(`[data-r="${i}"][data-c="${j}"]`);
      grids[which].querySelectorAll("[tabindex='0']").forEach(e => { e.tabIndex = -1; });
      cell(which, r, c).className = "pointed";
      cell(which, r, c).tabIndex = 0;
      each(connected, (i, j) => { cell(other, i, j).className = "connected"; });

      const lines = which === "y" ? [
        text.window(at("y", r, c), slice("x", ...connected), ...connected.map(([a, b]) => b - a)),
        text.bounds(bounds(r, size.oH, size.H), bounds(c, size.oW, size.W)),
        `${at("y", r, c)} = (${sum(each(connected, value))}) / ${area(r, c)} = ${total(r, c)} / ${area(r, c)} `
          + rounded(total(r, c) / area(r, c), 2),
      ] : [
        text.holders(at("x", r, c), slice("y", ...connected), each(connected, () => 1).length),
        text.bounds(bounds(r, size.H, size.oH), bounds(c, size.W, size.oW)),
        `grad ${at("x", r, c)} = ${sum(each(connected, (i, j) => `${at("g", i, j)}/${area(i, j)}`))}. `
          + text.ones(rounded(each(connected, (i, j) => 1 / area(i, j)).reduce((a, b) => a + b), 4).replace("= ", "")),
      ];
      said.replaceChildren(...lines.map(line => element("p", {}, line)));
    }

    function draw() {
      fill(grids.x, text.input(size.H, size.W), size.H, size.W, (i, j) => String(value(i, j)));
      fill(grids.y, text.output(size.oH, size.oW), size.oH, size.oW,
        (oh, ow) => round(total(oh, ow) / area(oh, ow), 1));
      point("y", floorDiv(size.oH, 2), floorDiv(size.oW, 2));
    }

    for (const [which, grid] of Object.entries(grids)) {
      const pointAt = event => {
        const cell = event.target.closest("[role=gridcell]");
        if (cell) point(which, Number(cell.dataset.r), Number(cell.dataset.c));
      };
      ["pointerover", "click", "focusin"].forEach(kind => grid.addEventListener(kind, pointAt));
      grid.addEventListener("keydown", event => {
        const [rows, columns] = which === "y" ? [size.oH, size.oW] : [size.H, size.W];
        const move = {
          ArrowUp: (r, c) => [r - 1, c], ArrowDown: (r, c) => [r + 1, c],
          ArrowLeft: (r, c) => [r, c - 1], ArrowRight: (r, c) => [r, c + 1],
          Home: r => [r, 0], End: r => [r, columns - 1],
        }[event.key];
        const cell = event.target.closest("[role=gridcell]");
        if (!move || !cell) return;
        event.preventDefault(); // the page must not scroll
        const [r, c] = move(Number(cell.dataset.r), Number(cell.dataset.c));
        if (r >= 0 && r < rows && c >= 0 && c < columns)
          grid.querySelector(`[data-r="${r}"][data-c="${c}"]`).focus();
      });
    }

    const sliders = names.map(name => {
      const shown = element("span", {}, String(size[name]));
      const slider = element("input", { type: "range", min: 1, max: MAX, value: size[name], name });
      slider.addEventListener("input", () => {
        size[name] = Number(slider.value);
        shown.textContent = slider.value;
        draw();
      });
      return element("label", {}, element("span", {}, text[name] + " = ", shown), slider);
    });
    figure.replaceChildren(
      element("fieldset", {}, element("legend", {}, text.sizes), ...sliders),
      element("div", { class: "grids" }, grids.x, grids.y),
      said,
      element("figcaption", {}, text.caption));
    draw();
  }

  document.querySelectorAll("figure.pool-windows").forEach(picture);
})();
