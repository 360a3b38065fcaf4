// The page of one or two landscapes: puts the chosen state and save into the charts.
const plan = JSON.parse(document.getElementById("plan").textContent);
const state = document.getElementById("state");
const save = document.getElementById("save"); // null where there is one save only
let wanted = 0; // number of requests; an outdated request is not drawn

/** A little higher than wide, within reason: Q over two actions is a square, between colour bar and axis. */
function height(chart) {
  return Math.round(Math.min(chart.clientWidth + 50, 540));
}

async function show() {
  const mine = ++wanted;
  const at = save ? Number(save.value) : plan.steps.length - 1;
  if (save) document.getElementById("step").value = `step ${plan.steps[at].toLocaleString("en")}`;
  for (const [a, shown] of plan.shown.entries()) {
    const view = `${a}-${shown[at]}-${state.value}`;
    const figure = JSON.parse(document.getElementById("view-" + view).textContent);
    figure.layout.height = height(document.getElementById("chart-landscape-" + a));
    document.getElementById("figure-landscape-" + a).textContent = JSON.stringify(figure);
    document.getElementById("said-" + a).replaceChildren(document.getElementById("said-" + view).content.cloneNode(true));
    await draw("landscape-" + a);
    if (mine !== wanted) return;
  }
  cursor();
}

/** Where the slider stands, in the curves over training. */
function cursor() {
  if (!save) return;
  const x = plan.steps[Number(save.value)];
  const color = getComputedStyle(root).getPropertyValue("--quiet").trim();
  const line = { type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color, width: 1, dash: "dot" } };
  for (const name of ["training-gap", "training-optima"]) {
    if (charts[name]) Plotly.relayout(charts[name], { shapes: [line] });
  }
}

/** A cut through many dimensions: the whole action beneath the pointer. */
function readOut(a) {
  const place = document.getElementById("readout-" + a);
  const chart = charts["landscape-" + a];
  if (place) {
    chart.on("plotly_hover", ({ points: [point] }) => {
      const { origin, axes } = chart.layout.meta;
      const at = axes.length > 1 ? [point.x, point.y] : [point.x];
      const action = origin.map((o, i) => at.reduce((sum, c, k) => sum + c * axes[k][i], o).toFixed(2));
      place.textContent = `Action (${action.join(", ").replaceAll("-", "−")})`;
    });
  }
}

state.addEventListener("change", show);
if (save) save.addEventListener("input", show);
document.addEventListener("drawn", cursor);
let wide = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== wide) setTimeout(show, 300); // after the page's own answer
  wide = innerWidth;
});
plan.shown.forEach((_, a) => readOut(a));
await show();
