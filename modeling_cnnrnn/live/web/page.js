const $ = (id) => document.getElementById(id);
const key = new URLSearchParams(location.search).get("key");
const state = { ...saved, points: saved?.points?.points ?? [] };
const MAX_BYTES = 8 * 2 ** 20;
const LABELS = { per_device_train_batch_size: "batch size" };
const COLORS = ["#3b6fd4", "#d2691e", "#2e8b57", "#9a5fc0", "#b8860b"];

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children); // texts stay texts, whatever they look like
  return element;
}
const name = (text) => LABELS[text] ?? text.replaceAll("_", " ");
function number(x) {
  if (x === null || x === undefined) return "–";
  if (Number.isInteger(x) && Math.abs(x) < 1e6) return x.toLocaleString("en");
  const size = Math.abs(x);
  return size >= 1e6 ? (x / 1e6).toPrecision(3) + "M" : size && size < 1e-3 ? x.toExponential(1) : String(+x.toPrecision(4));
}
/** Say what went wrong with a wish, or in `lost` that nobody answers. */
function note(text, place = "note") { $(place).textContent = text; $(place).hidden = !text; }

// --- What the page shows ---

const values = (series) => state.points.filter((point) => Number.isFinite(point[series]));
const last = (series) => values(series).at(-1)?.[series];

function showStatus() {
  const { state: now = "", sentence = "", step = 0 } = state.status ?? {}, plan = state.plan ?? {};
  document.title = $("title").textContent = `${plan.title ?? "Training"}: ${plan.output_dir ?? ""}`;
  $("status").className = now;
  $("status").replaceChildren(make("b", {}, now), sentence ? ` – ${sentence}` : "");
  const reached = Math.max(step, state.points.reduce((most, point) => Math.max(most, point.step), 0));
  $("progress").max = plan.num_steps ?? 1; $("progress").value = reached;
  const speed = Object.keys(state.points.at(-1) ?? {}).findLast((series) => series.endsWith("_per_second"));
  const speeds = speed ?? [...seriesNames()].findLast((series) => series.endsWith("_per_second"));
  const best = state.best ? `best ${plan.metric} ${number(state.best[plan.metric])} at step ${number(state.best.step)}` : "";
  const cpu = last("train/cpu_seconds");
  $("numbers").textContent = [
    `step ${number(reached)} of ${number(plan.num_steps)}`,
    speeds && `${number(last(speeds))} ${speeds.split("/").pop().replace("_per_second", "")} a second`,
    `learning rate ${number(last("train/learning_rate"))}`,
    cpu !== undefined && `${time(cpu)} of CPU time`,
    best,
  ].filter(Boolean).join(" · ");
  $("pause").textContent = now === "paused" ? "Resume" : "Pause";
  const ended = ["finished", "failed", "stopped"].includes(now);
  for (const element of document.querySelectorAll(".live button, .live input, .live select")) element.disabled = ended;
}
const time = (seconds) => seconds < 120 ? `${Math.round(seconds)} s` : seconds < 7200 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;

function showControls() {
  $("controls").replaceChildren(...Object.entries(state.controls ?? {}).map(([control, value]) => {
    const field = make("input", { value: number(value).replaceAll(",", ""), inputMode: "decimal", name: control });
    field.onchange = async () => { // a refused value does not stay in its field
      if (!(await wish({ [control]: field.value }))) field.value = number(state.controls[control]).replaceAll(",", "");
    };
    return make("label", {}, control === "learning_rate" ? "highest learning rate" : name(control), field);
  }));
}
function showChanges() {
  $("changes").replaceChildren(...(state.changes ?? []).toReversed().map((change) =>
    make("li", {}, `step ${number(change.step)}: ${name(change.name)} ${number(change.before)} → ${number(change.value)}`)));
}
function showCheckpoints() {
  const names = (state.checkpoints ?? []).toReversed();
  $("loading").hidden = !names.length;
  $("checkpoint").replaceChildren(...names.map((text) => make("option", {}, text)));
}
function showPlan() {
  const network = state.plan?.network;
  $("design").hidden = !network;
  if (network) $("network").value = pretty(network);
  showStatus();
}
/** JSON with a line for each field, and for each item of a list of objects. */
function pretty(value) {
  const line = (item) => JSON.stringify(item).replaceAll('":', '": ').replaceAll(',"', ', "');
  const field = (item) => Array.isArray(item) && typeof item[0] === "object"
    ? `[\n    ${item.map(line).join(",\n    ")}\n  ]` : typeof item === "object" ? JSON.stringify(item, null, 2).replaceAll("\n", "\n  ") : line(item);
  return `{\n${Object.entries(value).map(([label, item]) => `  "${label}": ${field(item)}`).join(",\n")}\n}`;
}

/** A picture with what the network says of it. `label` is what would be right. */
function picture({ image, label, top, words }, alt) {
  const frame = make("div", { className: "frame" }), shown = make("img", { src: image, alt: label ?? alt });
  shown.onload = () => shown.classList.toggle("pixels", shown.naturalWidth < 128);
  frame.append(shown);
  const said = label === undefined ? [] : [make("div", { className: "label" }, words ? `reference: ${label}` : label)];
  const bars = (top ?? []).map(([answer, probability]) => make("div",
    { className: `bar ${label === undefined ? "plain" : answer === label ? "right" : "wrong"}` },
    make("i", { style: `width: ${100 * probability}%` }),
    make("span", {}, make("b", { title: answer }, answer), `${Math.round(100 * probability)} %`)));
  const map = make("img", { className: "map pixels", alt: "", hidden: true });
  const buttons = (words ?? []).map((word) => {
    const button = make("button", { type: "button", title: word.map ? "where the network looked" : "" },
      word.text, make("small", {}, `${Math.round(100 * word.probability)} %`));
    button.style.color = `color-mix(in srgb, currentColor ${Math.round(45 + 55 * word.probability)}%, transparent)`;
    const show = (on) => { map.hidden = !on || !word.map; if (on && word.map) map.src = word.map; button.classList.toggle("on", on); };
    button.onmouseenter = button.onfocus = () => show(true);
    button.onmouseleave = button.onblur = () => show(false);
    return button;
  });
  if (words) frame.append(map);
  return make("div", { className: "picture" }, frame, ...bars, ...(words ? [make("div", { className: "words" }, ...buttons)] : []), ...said);
}
function showPredictions() {
  $("held-out").hidden = !state.predictions?.length;
  $("predictions").replaceChildren(...(state.predictions ?? []).map((item) => picture(item, "picture")));
}

function showConfusion() {
  const { classes = [], matrix = [] } = state.confusion ?? {};
  $("mistakes").hidden = !classes.length;
  const cell = (row, column) => {
    const share = matrix[row][column] / Math.max(1, matrix[row].reduce((sum, count) => sum + count, 0));
    const color = row === column ? "var(--right)" : "var(--wrong)";
    return make("td", {
      title: `${classes[row]} taken for ${classes[column]}: ${matrix[row][column]} (${Math.round(100 * share)} %)`,
      style: `background: color-mix(in srgb, ${color} ${Math.round(80 * share)}%, transparent)`,
    }, classes.length <= 40 && matrix[row][column] ? String(matrix[row][column]) : "");
  };
  $("confusion").replaceChildren(make("table", {},
    make("thead", {}, make("tr", {}, make("th"), ...classes.map((text) => make("th", {}, text)))),
    make("tbody", {}, ...classes.map((text, row) => make("tr", {}, make("th", {}, text), ...classes.map((_, column) => cell(row, column)))))));
}

const SHEETS = { activations: "activations", gradients: "their gradients", filters: "filters", filter_gradients: "gradients of the filters" };
const KINDS = [[/pool/i, "pool"], [/norm/i, "norm"], [/activation|relu|gelu|tanh|sigmoid|silu/i, "act"], [/linear|embedding|lstm|gru|rnn/i, "dense"]];
function showLayers() {
  const layers = state.layers ?? [];
  $("inside").hidden = !layers.length;
  $("look").textContent = state.look === undefined ? "" : `as one of these pictures passes through it, at step ${number(state.look)}`;
  $("layers").replaceChildren(...layers.map((layer) => make("div",
    { className: `layer ${KINDS.find(([kind]) => kind.test(layer.kind))?.[1] ?? ""}` },
    make("div", {}, make("b", {}, layer.kind), make("p", {}, layer.name),
      make("p", {}, layer.size), make("p", {}, `${number(layer.parameters)} parameters`)),
    make("div", { className: "sheets" }, ...Object.entries(SHEETS).filter(([part]) => layer[part]).map(([part, title]) => {
      const sheet = layer[part], caption = make("figcaption", {}, `${title}: ${number(sheet.min)} to ${number(sheet.max)}`);
      if (!sheet.image) return make("figure", {}, caption);
      const scale = Math.max(1, Math.min(10, Math.floor(480 / sheet.width)));
      return make("figure", {}, caption, make("img", { className: "pixels", src: sheet.image, alt: `${title} of ${layer.name}`, width: sheet.width * scale }));
    })))));
}

// --- Curves ---

function seriesNames() { return new Set(state.points.flatMap(Object.keys)); }
let axis = "step", scoreShown = null;
const panels = [
  { title: () => "loss", series: () => ["train/loss", "eval/loss"] },
  { title: () => score(), series: () => [`train/${score()}`, `eval/${score()}`], choices: scores },
  { title: () => "learning rate", series: () => ["train/learning_rate", "train/encoder_learning_rate"] },
  { title: () => "examples a second", series: () => [...seriesNames()].filter((series) => series.endsWith("_per_second")) },
];
const score = () => scoreShown ?? state.plan?.metric ?? "accuracy";
function scores() { return [...seriesNames()].filter((series) => series.startsWith("eval/") && series !== "eval/loss").map((series) => series.slice(5)); }

/** The place of each point on the horizontal axis; an evaluation is where the training was at its step. */
function places() {
  if (axis === "step") return state.points.map((point) => point.step);
  const known = state.points.filter((point) => Number.isFinite(point[`train/${axis}`])).toSorted((a, b) => a.step - b.step);
  const at = (step) => {
    let low = 0, high = known.length - 1;
    while (low < high) { const middle = (low + high + 1) >> 1; if (known[middle].step <= step) low = middle; else high = middle - 1; }
    const before = known[low], after = known[low + 1];
    if (!before) return NaN;
    const start = before[`train/${axis}`];
    if (!after || step <= before.step) return start * (step < before.step ? step / before.step : 1);
    return start + (after[`train/${axis}`] - start) * (step - before.step) / (after.step - before.step);
  };
  return state.points.map((point) => at(point.step));
}

function setUpPanels() {
  for (const panel of panels) {
    panel.canvas = make("canvas"); panel.legend = make("div", { className: "legend" });
    panel.canvas.setAttribute("role", "img");
    panel.canvas.onmousemove = (event) => { panel.pointer = event.offsetX; redraw("points"); };
    panel.canvas.onmouseleave = () => { panel.pointer = undefined; redraw("points"); };
    panel.box = make("div", { className: "panel" }, panel.legend, panel.canvas);
    $("panels").append(panel.box);
  }
  for (const button of document.querySelectorAll("[data-axis]")) button.onclick = () => {
    axis = button.dataset.axis;
    for (const other of document.querySelectorAll("[data-axis]")) other.setAttribute("aria-pressed", other === button);
    redraw("points");
  };
  new ResizeObserver(() => redraw("points")).observe($("panels"));
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((size) => size >= rough);
  return Array.from({ length: Math.floor(high / step) - Math.ceil(low / step) + 1 }, (_, i) => +((Math.ceil(low / step) + i) * step).toPrecision(12));
}

function drawPanel(panel, xs) {
  const names = panel.series().filter((series) => values(series).length);
  panel.box.hidden = !names.length && panel !== panels[0];
  const ratio = devicePixelRatio || 1, width = panel.canvas.clientWidth, height = panel.canvas.clientHeight;
  if (!width) return;
  panel.canvas.width = width * ratio; panel.canvas.height = height * ratio;
  const context = panel.canvas.getContext("2d"), style = getComputedStyle(document.body);
  context.scale(ratio, ratio);
  context.font = "11px system-ui, sans-serif";
  const lines = names.map((series) => state.points.map((point, i) => [xs[i], point[series], i]).filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y)).sort((a, b) => a[0] - b[0]));
  const left = 46, right = 8, top = 10, bottom = 22, all = lines.flat();
  const lastX = all.reduce((most, [x]) => Math.max(most, x), 0) || 1;
  let low = all.reduce((least, [, y]) => Math.min(least, y), Infinity), high = all.reduce((most, [, y]) => Math.max(most, y), -Infinity);
  if (!all.length) { low = 0; high = 1; }
  if (low > 0 && low < 0.6 * high) low = 0;
  if (low === high) { low -= Math.abs(low) / 2 || 0.5; high += Math.abs(high) / 2 || 0.5; }
  const X = (x) => left + (width - left - right) * x / lastX, Y = (y) => height - bottom - (height - top - bottom) * (y - low) / (high - low);
  context.strokeStyle = "#8883"; context.fillStyle = style.color; context.globalAlpha = 0.8;
  context.textAlign = "right"; context.textBaseline = "middle";
  for (const y of ticks(low, high, 4)) { context.beginPath(); context.moveTo(left, Y(y)); context.lineTo(width - right, Y(y)); context.stroke(); context.fillText(number(y), left - 5, Y(y)); }
  context.textAlign = "center"; context.textBaseline = "top";
  for (const x of ticks(0, lastX, width / 110)) context.fillText(axis === "cpu_seconds" ? time(x) : number(x), Math.min(X(x), width - 22), height - bottom + 6);
  context.globalAlpha = 1;
  const pointed = panel.pointer === undefined ? undefined : Math.min(Math.max(panel.pointer, left), width - right);
  const texts = lines.map((line, i) => {
    const color = COLORS[panel.series().indexOf(names[i]) % COLORS.length]; // of what it is, whatever else is drawn
    context.strokeStyle = context.fillStyle = color; context.lineWidth = 1.5;
    drawLine(context, line, X, Y);
    if (names[i].startsWith("eval/") && line.length < 80) for (const [x, y] of line) { context.beginPath(); context.arc(X(x), Y(y), 2.5, 0, 7); context.fill(); }
    const near = pointed === undefined ? line.at(-1) : line.reduce((best, point) => Math.abs(X(point[0]) - pointed) < Math.abs(X(best[0]) - pointed) ? point : best, line[0]);
    const [split, ...rest] = names[i].split("/"), label = panel === panels[0] || panel === panels[1] ? { train: "training", eval: "validation" }[split] : names.length > 1 ? name(rest.join("/")).replace(" per second", "") : "";
    return make("i", { style: `color: ${color}` }, `${label} ${near ? number(near[1]) : ""}`);
  });
  if (pointed !== undefined) { context.strokeStyle = "#8888"; context.lineWidth = 1; context.beginPath(); context.moveTo(pointed, top); context.lineTo(pointed, height - bottom); context.stroke(); }
  showLegend(panel, texts);
  panel.canvas.setAttribute("aria-label", `${panel.title()} against ${axis.replaceAll("_", " ")}: ${texts.map((text) => text.textContent).join(", ")}`);
}
/** A line of any number of points: of those that share a column of pixels, the lowest and the highest. */
function drawLine(context, line, X, Y) {
  context.beginPath();
  let column = null, low = 0, high = 0, started = false;
  const flush = () => { for (const y of low === high ? [low] : [low, high]) { started ? context.lineTo(column, Y(y)) : context.moveTo(column, Y(y)); started = true; } };
  for (const [x, y] of line) {
    const place = Math.round(X(x) * 2) / 2;
    if (place === column) { low = Math.min(low, y); high = Math.max(high, y); continue; }
    if (column !== null) flush();
    column = place; low = high = y;
  }
  if (column !== null) flush();
  context.stroke();
}
function showLegend(panel, texts) {
  const choices = panel.choices?.() ?? [];
  if (choices.length < 2) { panel.legend.replaceChildren(make("b", {}, name(panel.title())), ...texts); return; }
  if (panel.known !== choices.join()) { // a list that is open stays as it is
    panel.known = choices.join();
    panel.select = make("select", { ariaLabel: "score" }, ...choices.map((text) => make("option", { value: text, selected: text === score() }, name(text))));
    panel.select.onchange = () => { scoreShown = panel.select.value; redraw("points"); };
    panel.legend.replaceChildren(panel.select);
  }
  panel.legend.replaceChildren(panel.select, ...texts);
}
function showPoints() { const xs = places(); for (const panel of panels) drawPanel(panel, xs); showStatus(); }

// --- News from the training, and wishes to it ---

const SHOW = {
  points: showPoints, status: showStatus, plan: showPlan, best: showStatus, controls: showControls, changes: showChanges,
  checkpoints: showCheckpoints, predictions: showPredictions, confusion: showConfusion, layers: showLayers, look: showLayers,
};
const waiting = new Set();
function redraw(...parts) {
  if (!waiting.size) requestAnimationFrame(() => { const now = new Set([...waiting].map((part) => SHOW[part])); waiting.clear(); now.forEach((show) => show?.()); });
  parts.forEach((part) => waiting.add(part));
}
function take({ points, ...parts }) {
  if (points) { state.points.length = points.first; state.points.push(...points.points); parts.points = state.points; }
  Object.assign(state, parts);
  redraw(...Object.keys(parts));
}
function listen() {
  const source = new EventSource(`news?key=${key}`);
  source.onmessage = (event) => { note("", "lost"); take(JSON.parse(event.data)); };
  source.addEventListener("end", () => source.close());
  source.onerror = () => note("The training cannot be reached: it has ended, or is busy. What it showed last stays here.", "lost");
}
async function post(path, body) {
  try {
    const response = await fetch(`${path}?key=${key}`, { method: "POST", body });
    if (!response.ok) { note(await response.text()); return null; }
    note("");
    return await response.json();
  } catch { note("The training cannot be reached: it has ended, or is busy."); return null; }
}
const wish = (asked) => post("wish", JSON.stringify(asked));

async function ask(file) {
  if (!file) return;
  if (file.size > MAX_BYTES) { note("The picture has more than 8 MB: send a smaller one."); return; }
  const answer = await post("picture", file);
  if (answer) $("answer").replaceChildren(picture({ image: URL.createObjectURL(file), ...answer }, "your picture"));
}
function steer() {
  $("pause").onclick = () => wish({ paused: state.status?.state !== "paused" });
  $("save").onclick = () => wish({ save: true });
  $("stop").onclick = () => wish({ stop: true });
  $("load").onclick = () => wish({ checkpoint: $("checkpoint").value });
  $("again").onclick = () => wish({ network: $("network").value });
  $("drop").onclick = () => $("file").click();
  $("drop").onkeydown = (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); $("file").click(); } };
  $("file").onchange = () => { ask($("file").files[0]); $("file").value = ""; };
  document.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
  document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => { event.preventDefault(); $("drop").classList.remove("over"); ask(event.dataTransfer.files[0]); });
  document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) ask(event.clipboardData.files[0]); });
}

setUpPanels();
if (saved) { document.body.classList.add("static"); redraw(...Object.keys(SHOW)); } else { steer(); listen(); }
