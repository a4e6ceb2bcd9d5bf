// The drawings of a page, in the colours of its palette.
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const theme = () => {
  const [ink, panel, line] = ["--ink", "--panel", "--line"].map(colour);
  return {"font.color": ink, "hoverlabel.font.color": ink, "hoverlabel.bgcolor": panel,
    "hoverlabel.bordercolor": line};
};
const coarse = matchMedia("(pointer: coarse)");  // a finger scrolls the page, and zooms no drawing
const draw = (plot, {data, layout}) =>
  Plotly.react(plot, data, coarse.matches ? {...layout, dragmode: false} : layout,
               {responsive: true, displayModeBar: false})
    .then(() => Plotly.relayout(plot, theme()));
const repaint = change => document.querySelectorAll(".js-plotly-plot").forEach(
  plot => Plotly.relayout(plot, {...theme(), ...change}));
for (const figure of document.querySelectorAll(".plot")) {
  draw(figure.querySelector(".drawing"), JSON.parse(figure.querySelector("script").textContent));
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => repaint({}));
// Paper is white, whatever the screen prefers. Drawings have a fixed width: they must fit the narrowest common sheet.
const onPaper = printing => document.documentElement.classList.toggle("paper", printing);
addEventListener("beforeprint", () => { onPaper(true); repaint({width: 660}); });
addEventListener("afterprint", () => { onPaper(false); repaint({width: null, autosize: true}); });
