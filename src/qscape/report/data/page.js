// Unpacks plotly.js and draws the page's charts. Everything is in the page: nothing is fetched.
"use strict";

const root = document.documentElement;
const touch = matchMedia("(pointer: coarse)"); // a finger, which scrolls
const darkness = matchMedia("(prefers-color-scheme: dark)");
const charts = {}; // name of a figure -> the element that plotly drew it in

// What is too dark for a dark page. The colours of the palette stand on both, and to brighten one would bring it near another.
const BRIGHTER = {
  "#000000": "#F2F2F2", "#111111": "#EEEEEE", "#333333": "#CFCFCF", "#6E6E6E": "#A0A0A0", "#979797": "#7C7C7C",
};

function isDark() {
  return darkness.matches && !root.classList.contains("printing");
}

/** The same for a colour that lets shine through, as plotly writes it. */
function brighterRgba([red, green, blue, alpha]) {
  const hex = (numbers) => "#" + numbers.map((n) => Number(n).toString(16).padStart(2, "0")).join("").toUpperCase();
  const found = BRIGHTER[hex([red, green, blue])] || hex([red, green, blue]);
  return found + Math.round(255 * alpha).toString(16).padStart(2, "0");
}

async function unpacked(element) {
  const bytes = Uint8Array.from(atob(element.textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

async function loadPlotly() {
  const code = await unpacked(document.getElementById("plotly"));
  const script = document.createElement("script");
  script.src = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  await new Promise((done, failed) => {
    script.onload = done;
    script.onerror = () => failed(new Error("plotly.js did not load"));
    document.head.append(script);
  });
}

/** A figure as stored, in the colours of the page: {data, layout, config, frames}. */
function themed(name) {
  let text = document.getElementById("figure-" + name).textContent;
  if (isDark()) {
    text = text.replace(/"(#[0-9a-f]{6})"/gi, (_, colour) => `"${BRIGHTER[colour.toUpperCase()] || colour}"`)
      .replace(/"rgba\((\d+), ?(\d+), ?(\d+), ?([\d.]+)\)"/g, (_, ...rgba) => `"${brighterRgba(rgba)}"`);
  }
  const figure = JSON.parse(text);
  const style = getComputedStyle(root);
  const css = (variable) => style.getPropertyValue(variable).trim();
  const family = getComputedStyle(document.body).fontFamily;
  const layout = { xaxis: {}, yaxis: {}, ...figure.layout };
  for (const key of Object.keys(layout)) {
    if (!/^[xy]axis\d*$/.test(key)) continue;
    const colours = { gridcolor: css("--grid"), zerolinecolor: css("--line"), linecolor: css("--line") };
    const pointed = { spikecolor: css("--quiet"), spikethickness: 1, spikedash: "dot" };
    if (key[0] === "x" && layout.hovermode === "x unified") Object.assign(colours, pointed);
    layout[key] = { automargin: true, ...colours, ...layout[key] };
    const title = layout[key].title;
    if (title) layout[key].title = { font: { size: 13 }, ...(typeof title === "string" ? { text: title } : title) };
  }
  for (const slider of layout.sliders || []) {
    Object.assign(slider, { bgcolor: css("--card"), bordercolor: css("--line"), activebgcolor: css("--accent"), tickcolor: css("--quiet") });
  }
  layout.font = { family, size: 13, color: css("--ink"), ...layout.font };
  layout.hoverlabel = { bgcolor: css("--card"), bordercolor: css("--line"), font: { family, color: css("--ink") }, align: "left", namelength: -1, ...layout.hoverlabel };
  layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: css("--quiet"), activecolor: css("--ink"), ...layout.modebar };
  layout.legend = { orientation: "h", x: 0, xanchor: "left", xref: "container", y: 0, yanchor: "bottom", yref: "container", maxheight: 4000, tracegroupgap: 0, ...layout.legend };
  Object.assign(layout, { autosize: true, paper_bgcolor: css("--paper"), plot_bgcolor: css("--paper") });
  layout.margin = { l: 8, r: 20, t: 12, b: 8, ...layout.margin };
  layout.height = layout.height || 340;
  if (touch.matches) layout.dragmode = false; // else a swipe would zoom
  layout.uirevision = "kept"; // what a reader hid or zoomed stays so when colours change
  const config = {
    responsive: true, displaylogo: false, plotlyServerURL: "", showTips: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg", filename: name }, ...figure.config,
  };
  return { data: figure.data, layout, config, frames: figure.frames };
}

/** The plot keeps the height that it asked for; the legend comes on top, however many lines it needs. */
async function fit(name) {
  const chart = charts[name];
  const legend = chart.querySelector("g.legend rect.bg");
  const height = Math.round(chart.wanted + (legend ? legend.getBBox().height : 0));
  if (!(Math.abs(height - chart.layout.height) <= 2)) await Plotly.relayout(chart, { height });
  delete chart.layout.width; // relayout wrote it down, and then the chart would not follow the window
}

/** What a legend may need at most, for the first drawing: without any room plotly gives up. */
function legendRoom({ data, layout }) {
  const named = layout.showlegend === false ? [] : data.filter((t) => t.name && t.showlegend !== false);
  return 20 * named.reduce((lines, trace) => lines + trace.name.split("<br>").length, 0);
}

async function draw(name) {
  const figure = themed(name);
  const chart = document.getElementById("chart-" + name);
  const again = name in charts && !figure.frames; // frames hold colours, too: those are made anew
  charts[name] = chart;
  chart.wanted = figure.layout.height;
  figure.layout.height = again ? chart.layout.height : chart.wanted + legendRoom(figure);
  await (again ? Plotly.react : Plotly.newPlot)(chart, figure);
  chart.classList.add("drawn");
  await fit(name);
}

async function drawAll() {
  for (const element of document.querySelectorAll("script[data-figure]")) await draw(element.dataset.figure);
  document.dispatchEvent(new Event("drawn")); // first, and again whenever the colours changed
}

async function download(name) {
  const [element] = [...document.querySelectorAll("script[data-file]")].filter((e) => e.dataset.file === name);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([await unpacked(element)], { type: "text/plain" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

async function start() {
  for (const link of document.querySelectorAll("[data-download]")) {
    link.addEventListener("click", () => download(link.dataset.download));
  }
  if (!document.getElementById("plotly")) return;
  await loadPlotly();
  await drawAll();
  darkness.addEventListener("change", drawAll);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    setTimeout(() => Object.keys(charts).forEach(fit), 200); // after plotly's own answer
  });
  for (const [event, on] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(event, () => {
      root.classList.toggle("printing", on);
      Object.keys(charts).forEach(draw); // all at once: the printer does not wait
    });
  }
}

function failed(problem) {
  const said = document.createElement("p");
  said.className = "problem";
  said.textContent = `The charts could not be drawn (${problem.message}). They need a browser of 2023 or newer; tables and text are whole.`;
  document.querySelector("header").append(said);
  console.error(problem);
}
