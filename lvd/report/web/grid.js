// Grids of cells: a click, or a key, shows a cell's job.
const element = (tag, text, attributes = {}) => {
  const made = Object.assign(document.createElement(tag), attributes);
  made.textContent = text;
  return made;
};
const show = (panel, cell) => {
  const table = element("table", "");
  for (const [name, value] of cell.rows) {
    const row = table.insertRow();
    row.append(element("th", name, {scope: "row"}), element("td", value));
  }
  const links = element("p", "");
  for (const [text, href] of cell.links) links.append(element("a", text, {href}), " ");
  const curves = element("div", "", {className: "curves"});
  const facts = element("div", "", {className: "facts"});
  facts.append(table, curves);
  panel.replaceChildren(element("h3", cell.title), facts, links);
  if (cell.curves.length) {
    curves.style.minHeight = "260px";  // its room, before it is drawn
    const axis = {gridcolor: `rgba(${colour("--chart-neutral")},0.25)`, zeroline: false, automargin: true};
    draw(curves, {data: cell.curves, layout: {
      height: 260, margin: {l: 50, r: 10, t: 10, b: 45}, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)", xaxis: {...axis, title: {text: "epoch"}}, yaxis: axis,
      legend: {orientation: "h", y: 1.15},
    }});
  }
};
// One button a cell lies over the drawing, for the keyboard: the pointer goes through to the drawing itself.
const gridOf = figure => {
  const plot = figure.querySelector(".drawing"), board = figure.querySelector(".board");
  const panel = figure.querySelector(".detail"), select = figure.querySelector("select");
  const {metrics, categories, steps, cells} = JSON.parse(figure.querySelector(".cells").textContent);
  const hint = panel.firstElementChild, buttons = new Map();
  let opened = null;
  const mark = key => {
    for (const [other, button] of buttons) button.setAttribute("aria-selected", other === key);
    opened = key;
  };
  const reach = key => {  // the cell that Tab leads to
    for (const [other, button] of buttons) button.tabIndex = other === key ? 0 : -1;
  };
  const open = key => { reach(key); mark(key); show(panel, cells[key]); };
  const close = () => {
    const inside = figure.contains(document.activeElement) && document.activeElement !== select;
    if (inside) buttons.get(opened).focus();
    mark(null);
    panel.replaceChildren(hint);
  };
  const choose = metric => { select.value = metric; draw(plot, metrics[metric]); };
  board.setAttribute("role", "grid");
  board.setAttribute("aria-label", figure.querySelector("figcaption").firstChild.textContent.trim());
  for (const category of categories) {
    const row = element("div", "");
    row.setAttribute("role", "row");
    for (const step of steps) {
      const key = `${category} ${step}`, button = element("button", "", {type: "button", tabIndex: -1});
      if (cells[key]) {
        const facts = cells[key].rows.map(pair => pair.join(" ")).join(", ");
        button.setAttribute("role", "gridcell");
        button.setAttribute("aria-label", `${cells[key].title}: ${facts}`);
        button.addEventListener("click", () => open(key));
        button.addEventListener("focus", () => {
          reach(key);
          Plotly.Fx.hover(plot, {xval: step, yval: categories.indexOf(category)});
        });
        button.addEventListener("blur", () => Plotly.Fx.unhover(plot));
        buttons.set(key, button);
      } else {
        button.disabled = true;
      }
      row.append(button);
    }
    board.append(row);
  }
  reach(buttons.keys().next().value);
  board.addEventListener("keydown", event => {
    const rows = [...board.children].map(row => [...row.children]);
    const y = rows.findIndex(row => row.includes(event.target)), x = rows[y].indexOf(event.target);
    const last = steps.length - 1, bottom = categories.length - 1;
    const [toY, toX] = {
      ArrowLeft: [y, x - 1], ArrowRight: [y, x + 1], ArrowUp: [y - 1, x], ArrowDown: [y + 1, x],
      Home: [event.ctrlKey ? 0 : y, 0], End: [event.ctrlKey ? bottom : y, last],
    }[event.key] ?? [-1, -1];
    const target = rows[toY]?.[toX];
    if (!target || event.altKey || event.metaKey) return;
    event.preventDefault();
    if (!target.disabled) target.focus();
  });
  figure.addEventListener("keydown", event => {
    if (event.key === "Escape" && opened !== null && event.target !== select) close();
  });
  select.addEventListener("change", () => choose(select.value));
  plot.on("plotly_click", event => {
    const key = `${event.points[0].y} ${event.points[0].x}`;
    if (cells[key]) open(key);
  });
  const place = () => {
    const {xaxis, yaxis} = plot._fullLayout;
    Object.assign(board.style, {left: `${xaxis._offset}px`, top: `${yaxis._offset}px`,
      width: `${xaxis._length}px`, height: `${yaxis._length}px`});
  };
  plot.on("plotly_afterplot", place);
  place();
  return {
    state: () => ({metric: select.value, opened, focused: [...buttons].findIndex(
      ([, button]) => button === document.activeElement)}),
    restore: ({metric, opened, focused}) => {
      if (metrics[metric]) choose(metric);
      if (cells[opened]) open(opened);
      if (focused >= 0) [...buttons.values()][focused]?.focus({preventScroll: true});
    },
  };
};
const grids = [...document.querySelectorAll(".grid")].map(gridOf);
const memory = `lvd ${location.pathname}`;
try {  // where a reader was when the version before this one made way for it
  const {top, states} = JSON.parse(sessionStorage.getItem(memory)) ?? {};
  sessionStorage.removeItem(memory);
  if (states) {
    history.scrollRestoration = "manual";
    states.forEach((state, number) => grids[number]?.restore(state));
    scrollTo(0, top);
  }
} catch {}  // a browser that keeps nothing
