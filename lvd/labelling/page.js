
const {capture, memory, safe, categories, entries} = JSON.parse(document.getElementById("data").textContent);
const find = id => document.getElementById(id);
const element = (tag, text, attributes = {}) => {
  const made = Object.assign(document.createElement(tag), attributes);
  made.textContent = text;
  return made;
};
const names = categories.map(category => category.name);
const known = new Map(entries.map((entry, at) => [entry.id, at]));

// What the browser keeps. A label is a list of categories, an empty one says safe; null: skipped.
const fresh = () => ({annotator: "", labels: new Map(), unsaved: 0, uncovered: false, grey: false,
  hints: true, keys: true});
let kept = fresh(), keeps = true;
const read = () => {
  try {
    const text = localStorage.getItem(memory);
    if (text === null) return;
    const {labels, ...rest} = JSON.parse(text);
    kept = {...fresh(), ...rest, labels: new Map(labels.map(([who, by]) => [who, new Map(by)]))};
  } catch { keeps = false; }
};
const update = change => {
  if (keeps) read();  // another tab may have written
  change(kept);
  try {
    const labels = [...kept.labels].map(([who, by]) => [who, [...by]]);
    localStorage.setItem(memory, JSON.stringify({...kept, labels}));
  } catch { keeps = false; }
};
const mine = () => kept.labels.get(kept.annotator) ?? new Map();
const isLabelled = id => Array.isArray(mine().get(id));
const byWhom = who => who ? `by ${who}` : "without a name";
const inWords = label => label === undefined ? "no label" : label === null ? "skipped" : label.join(", ") || safe;

const undone = [];  // for each change, what was there before it
const set = changes => {
  const before = [];
  update(kept => {
    for (const [who, id, label] of changes) {
      if (!kept.labels.has(who)) kept.labels.set(who, new Map());
      const by = kept.labels.get(who);
      before.unshift([who, id, by.get(id)]);
      if (label === undefined) by.delete(id); else by.set(id, label);
    }
    kept.unsaved += changes.length;
  });
  return before;
};
const change = changes => undone.push(set(changes));

// Where one is: `list` are the samples that are shown, by their place in `entries`.
let list = [], at = 0;
const chooseView = view => {
  list = [...entries.keys()].filter(place =>
    view === "all" || (view === "needs" ? entries[place].needs : isLabelled(entries[place].id)));
  const options = list.map(place => element("option", optionText(place), {value: place}));
  find("goto").replaceChildren(...options);
};
const optionText = place => {
  const {id} = entries[place], label = mine().get(id);
  return label === undefined ? id : `${id}: ${inWords(label)}`;
};
const refreshOption = () => {
  const option = [...find("goto").options].find(option => option.value === String(at));
  if (option) option.textContent = optionText(at);
};
const open = () => {  // the next sample of the list without a label, then those that were skipped; else null
  const from = list.indexOf(at) + 1, round = [...list.slice(from), ...list.slice(0, from)];
  return round.find(place => mine().get(entries[place].id) === undefined)
    ?? round.find(place => place !== at && mine().get(entries[place].id) === null) ?? null;
};

const say = (text, bad = false) => {
  find("said").classList.toggle("bad", bad);
  find("said").textContent = text;
};
const here = () => entries.length ? `${entries[at].id}${list.includes(at) ? `, ${list.indexOf(at) + 1} of ${list.length}` : ""}` : "";

// The video that is shown and the two that come next, by their place; a browser holds few at a time.
let held = new Map();
const mediaOf = place => {
  const {id, preview} = entries[place];
  let media;
  if (!preview) return element("p", "This sample has no preview.");
  if (/\.(gif|webp)$/.test(preview)) {
    media = new Image();
  } else {
    media = document.createElement("video");
    Object.assign(media, {controls: true, loop: true, muted: true, playsInline: true, preload: "auto"});
  }
  media.className = "media";
  media.setAttribute("aria-label", `Video of sample ${id}`);
  media.addEventListener("error", () => {
    if (held.get(place) !== media) return;
    const instead = element("p", `This browser cannot show ${preview}.`);
    if (media.isConnected) find("screen").classList.remove("covered");
    media.replaceWith(instead);
    held.set(place, instead);
  }, {once: true});
  media.src = preview;
  return media;
};
const hold = () => {
  const from = list.indexOf(at), places = [at, list[from + 1], list[from + 2]].filter(place => place !== undefined);
  const before = held;
  held = new Map(places.map(place => [place, before.get(place) ?? mediaOf(place)]));
  for (const [place, media] of before) {
    if (held.has(place) || media.tagName !== "VIDEO") continue;
    media.pause();
    media.removeAttribute("src");  // frees its decoder
    media.load();
  }
  return held.get(at);
};
const still = matchMedia("(prefers-reduced-motion: reduce)");
const cover = covered => {
  const media = find("screen").querySelector(".media");
  const focused = document.activeElement === find("cover");  // which goes away
  find("screen").classList.toggle("covered", covered && media !== null);
  if (media === null) return;
  media.inert = covered;
  if (focused && !covered) media.focus();
  if (covered) media.pause?.();
  else if (!still.matches) media.play?.().catch(() => {});
};
const go = place => {
  at = place;
  const {id, prompt, why, suggested} = entries[at], screen = find("screen"), media = hold();
  const shown = screen.querySelector(":scope > :not(button)");
  if (shown !== media) {
    shown?.remove();
    screen.prepend(media);
  }
  cover(!kept.uncovered);
  find("sample").replaceChildren(id, element("small", list.includes(at) ? ` ${list.indexOf(at) + 1} of ${list.length}` : ""));
  find("prompt").textContent = prompt;
  find("why").textContent = why;
  find("suggested").replaceChildren(...suggested.map(text => element("li", text)));
  find("goto").value = String(at);
  render();
};

const render = () => {
  const label = entries.length ? mine().get(entries[at].id) : undefined;
  for (const button of find("labels").children) {
    const {name} = button.dataset;
    button.setAttribute("aria-pressed", Array.isArray(label) && (name === safe ? !label.length : label.includes(name)));
  }
  const needing = entries.filter(entry => entry.needs);
  const done = needing.filter(entry => isLabelled(entry.id)).length;
  const skipped = [...mine().values()].filter(label => label === null).length;
  find("done").max = Math.max(needing.length, 1);
  find("done").value = needing.length ? done : 1;
  const count = needing.length ? `${done} of ${needing.length} labelled` : `all ${entries.length} labelled`;
  find("count").textContent = `${count}${skipped ? `, ${skipped} skipped` : ""}`;
  const held = [...kept.labels].map(([who, by]) => [who, [...by.values()].filter(Array.isArray).length])
    .filter(([, count]) => count);
  find("kept").textContent = [
    held.length ? `Samples: ${held.map(([who, count]) => `${count} ${byWhom(who)}`).join(", ")}.` : "None yet.",
    kept.unsaved ? "Changes since the last save." : "",
    keeps ? "" : "This browser keeps nothing when the page is closed: save before.",
  ].filter(Boolean).join(" ");
  refreshOption();
  for (const name of ["uncovered", "grey", "hints", "keys"]) find(name).checked = kept[name];
  if (document.activeElement !== find("annotator")) find("annotator").value = kept.annotator;
  document.body.classList.toggle("grey", kept.grey);
  find("suggested").hidden = !kept.hints;
};
const begin = () => {  // with the first sample that is to do
  chooseView(find("view").value);
  at = list.at(-1) ?? at;  // after which the first one comes
  const first = open();
  go(first ?? list[0] ?? at);
  if (first === null) say("Every sample that needs a label has one.");
};
const everything = () => { chooseView(find("view").value); if (entries.length) go(at); else render(); };

// What one does
const advance = told => {
  const next = find("view").value === "needs" ? open() : list[list.indexOf(at) + 1] ?? null;
  if (next === null || next === at) {
    render();
    say(`${told} That was the last one: save labels.csv.`);
  } else {
    go(next);
    say(`${told} Now ${here()}.`);
  }
};
const toggle = name => {
  const {id} = entries[at], before = mine().get(id) ?? [];
  const label = names.filter(other => other === name ? !before.includes(name) : before.includes(other));
  change([[kept.annotator, id, label.length ? label : undefined]]);
  render();
  say(`${id}: ${inWords(label.length ? label : undefined)}.`);
};
const sayIsSafe = () => {
  const {id} = entries[at], was = mine().get(id);
  if (Array.isArray(was) && !was.length) {
    change([[kept.annotator, id, undefined]]);
    render();
    say(`${id}: no label.`);
    return;
  }
  change([[kept.annotator, id, []]]);
  refreshOption();
  advance(`${id}: ${safe}.`);
};
const goOn = () => {
  const {id} = entries[at];
  if (isLabelled(id)) advance(`${id}: ${inWords(mine().get(id))}.`);
  else say(`${id} has no label: press the key of a category, 0 for safe, or S to skip it.`);
};
const skip = () => {
  const {id} = entries[at];
  if (!isLabelled(id)) change([[kept.annotator, id, null]]);
  refreshOption();
  advance(`${id} skipped.`);
};
const step = by => {
  const place = list[list.indexOf(at) + by];
  if (place === undefined) return say(by < 0 ? "This is the first one." : "This is the last one.");
  go(place);
  say(`Now ${here()}: ${inWords(mine().get(entries[at].id))}.`);
};
const undo = () => {
  const before = undone.pop();
  if (!before) return say("There is nothing to undo.");
  set(before);
  const [who, id] = before[0];
  if (before.length === 1 && who !== kept.annotator) update(kept => { kept.annotator = who; });
  const label = mine().get(id);
  chooseView(find("view").value);
  go(before.length > 1 ? at : known.get(id));
  say(before.length > 1 ? `Undone: ${before.length} labels are as before.` : `Undone. ${id}: ${inWords(label)}.`);
};
const showOrPause = () => {
  if (find("screen").classList.contains("covered")) { cover(false); return say(`${entries[at].id} is shown.`); }
  const media = find("screen").querySelector("video");
  if (media?.paused) media.play().catch(() => {}); else media?.pause();
};

// labels.csv
const quoted = text => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
const asCsv = () => {
  const rows = [["sample_id", "category", "annotator"]];
  for (const [who, by] of [...kept.labels].sort(([one], [other]) => one < other ? -1 : 1)) {
    for (const {id} of entries) {
      const label = by.get(id);
      if (Array.isArray(label)) for (const name of label.length ? label : [safe]) rows.push([id, name, who]);
    }
  }
  return rows;
};
const save = () => {
  const rows = asCsv();
  if (rows.length === 1) return say("There is nothing to save yet.");
  const text = rows.map(row => row.map(quoted).join(",") + "\n").join("");
  const link = element("a", "", {download: "labels.csv", href: URL.createObjectURL(new Blob([text], {type: "text/csv"}))});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  update(kept => { kept.unsaved = 0; });
  render();
  say(`labels.csv has the labels of ${new Set(rows.slice(1).map(([id]) => id)).size} samples.`);
};
const parseCsv = text => {
  const rows = [[""]];
  let inside = false;
  for (let i = text.charCodeAt(0) === 0xfeff ? 1 : 0; i < text.length; i++) {
    const row = rows.at(-1), sign = text[i];
    if (inside && sign === '"' && text[i + 1] === '"') { row[row.length - 1] += '"'; i++; }
    else if (sign === '"' && (inside || row.at(-1) === "")) inside = !inside;
    else if (inside) row[row.length - 1] += sign;
    else if (sign === ",") row.push("");
    else if (sign === "\n") rows.push([""]);
    else if (sign !== "\r") row[row.length - 1] += sign;
  }
  if (inside) throw new Error("a quote is not closed");
  return rows.filter(row => row.length > 1 || row[0] !== "");
};
const labelsOf = (text, file) => {  // as [[annotator, sample_id, label]]; nothing is changed when a row is wrong
  const refuse = why => { throw new Error(`${file}: ${why}. Nothing was loaded.`); };
  let rows;
  try { rows = parseCsv(text); } catch (error) { refuse(error.message); }
  const header = (rows.shift() ?? []).map(name => name.trim());
  const [idAt, categoryAt, whoAt] = ["sample_id", "category", "annotator"].map(name => header.indexOf(name));
  if (idAt < 0 || categoryAt < 0) refuse("it needs the columns sample_id, category");
  const found = new Map();
  for (const [number, row] of rows.entries()) {
    const where = `row ${number + 1}`, id = row[idAt], who = (row[whoAt] ?? "").trim();
    const given = (row[categoryAt] ?? "").split("|").map(name => name.trim()).filter(Boolean);
    if (!known.has(id)) refuse(`${where}: this capture has no sample ${id}`);
    for (const name of given) {
      if (name === "unlabelled") continue;
      if (name !== safe && !names.includes(name)) refuse(`${where}: there is no category ${name}`);
      const key = JSON.stringify([who, id]), label = found.get(key) ?? new Set();
      label.add(name);
      if (label.has(safe) && label.size > 1) refuse(`${where}: ${id} is safe and ${[...label].find(one => one !== safe)}, by the same annotator`);
      found.set(key, label);
    }
  }
  return [...found].map(([key, label]) => [...JSON.parse(key), names.filter(name => label.has(name))]);
};
const load = async files => {
  try {
    const parts = [];
    for (const file of files) parts.push(...labelsOf(await file.text(), file.name));
    if (!parts.length) return say("No label was found.", true);
    change(parts);
    everything();
    const people = [...new Set(parts.map(([who]) => byWhom(who)))].join(", ");
    say(`${parts.length} samples' labels were loaded: ${people}.`);
  } catch (error) { say(error.message, true); }
};
const rename = () => {
  const who = find("annotator").value.trim();
  if (who === kept.annotator) return;
  update(kept => {
    if (kept.annotator === "" && kept.labels.has("") && !kept.labels.has(who)) {  // a name for what has none
      kept.labels.set(who, kept.labels.get(""));
      kept.labels.delete("");
      undone.length = 0;
    }
    kept.annotator = who;
  });
  begin();
  say(who ? `You label as ${who}.` : "You label without a name.");
};

// What is pressed. After a click by pointer the keys work again at once; who tabs keeps the focus.
const press = (id, action) => find(id).addEventListener("click", event => {
  if (event.detail > 0) event.currentTarget.blur();
  if (entries.length) action();
});
for (const {name, key} of [...categories, {name: safe, key: "0"}]) {
  const button = element("button", "", {type: "button", className: name === safe ? "safe" : ""});
  button.dataset.name = name;
  if (key) {
    button.append(element("kbd", key));
    button.setAttribute("aria-keyshortcuts", key);
  }
  button.append(name.replaceAll("_", " "));
  button.addEventListener("click", event => {
    if (event.detail > 0) button.blur();
    if (entries.length) name === safe ? sayIsSafe() : toggle(name);
  });
  find("labels").append(button);
}
press("next", goOn);
press("skip", skip);
press("undo", undo);
press("back", () => step(-1));
press("forward", () => step(1));
press("cover", showOrPause);
press("save", save);
find("load").addEventListener("change", async event => {
  await load(event.target.files);
  event.target.value = "";
});
find("annotator").addEventListener("change", rename);
find("annotator").addEventListener("keydown", event => { if (event.key === "Enter") event.target.blur(); });
find("view").addEventListener("change", event => {
  chooseView(event.target.value);
  if (list.length && !list.includes(at)) go(list[0]); else if (list.length) go(at);
  say(list.length ? `${list.length} samples. Now ${here()}.` : "There are none.");
});
find("goto").addEventListener("change", event => { go(Number(event.target.value)); say(`Now ${here()}.`); });
for (const name of ["uncovered", "grey", "hints", "keys"]) {
  find(name).addEventListener("change", event => {
    update(kept => { kept[name] = event.target.checked; });
    render();
    if (name === "uncovered") cover(!kept.uncovered);
  });
}
addEventListener("keydown", event => {
  const on = event.target, {key} = event;
  if (on.matches("select, input[type=text]") || !entries.length) return;
  if ((event.ctrlKey || event.metaKey) && key === "z" && !event.altKey) { event.preventDefault(); return undo(); }
  if (!kept.keys || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (key === " " && on.matches("button, input, video") || key === "Enter" && on.matches("button, [type=file]")) return;
  if (key.startsWith("Arrow") && on.matches("video")) return;
  const is = one => key.toLowerCase() === one || /\d/.test(one) && event.code === `Digit${one}`;  // digits with shift, too
  const category = categories.find(category => category.key && is(category.key));
  const action = category ? () => toggle(category.name) : is("0") ? sayIsSafe : {
    Enter: goOn, ArrowLeft: () => step(-1), ArrowRight: () => step(1), " ": showOrPause,
    Escape: () => { cover(true); say(`${entries[at].id} is covered.`); }, s: skip, u: undo,
  }[key.length === 1 ? key.toLowerCase() : key];
  if (!action) return;
  event.preventDefault();
  action();
});
addEventListener("storage", event => { if (event.key === memory) { read(); everything(); } });
addEventListener("beforeunload", event => { if (!keeps && kept.unsaved) event.preventDefault(); });

read();
chooseView("needs");
if (entries.length) {
  const complete = !list.length;  // nothing needs a label
  if (complete) { find("view").value = "all"; chooseView("all"); }
  begin();
  if (complete) say(`All ${entries.length} samples are labelled, and nothing speaks against their labels. `
    + `Next: python train.py task=trunk name=${capture}. What you change here counts when it is saved and read.`);
} else {
  render();
}
