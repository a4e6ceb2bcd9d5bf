// The page is written anew while jobs run: when nobody is at work on this version, look for the next one.
const made = document.querySelector("[data-reload]");
const minutes = Math.floor((Date.now() - Date.parse(made.querySelector("time").dateTime)) / 60000);
if (minutes >= 5) made.append(` Not written anew for ${minutes} minutes: the sweep may have been stopped.`);
let timer;
const later = () => {
  clearTimeout(timer);
  timer = setTimeout(reload, 1000 * Number(made.dataset.reload));
};
const reload = () => {
  if (document.hidden || !getSelection().isCollapsed) return later();
  try {
    const states = grids.map(grid => grid.state());
    sessionStorage.setItem(memory, JSON.stringify({top: scrollY, states}));
  } catch {}
  location.reload();
};
for (const name of ["pointerdown", "keydown", "wheel", "visibilitychange"]) addEventListener(name, later);
later();
