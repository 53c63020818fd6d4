"use strict";

const EVERY = 2000;  // ms between two looks
const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);

const CONDITIONS = {
  "not started": ["off", "not started yet"], running: ["work", "running"], done: ["good", "finished"],
  failed: ["bad", "failed"], stopped: ["off", "stopped"], killed: ["bad", "coordinator not running"],
};
// A word, a sign and a colour for each state: none stands alone.
const STATES = {
  unknown: ["off", "–", "not seen yet"], connected: ["good", "●", "connected"], working: ["work", "◐", "working"],
  late: ["warn", "▲", "late"], away: ["warn", "○", "not connected"], refused: ["bad", "✕", "refused"],
  revoked: ["bad", "✕", "certificate revoked"],
};

function make(tag, told = {}, ...children) {
  const found = document.createElement(tag);
  for (const [key, value] of Object.entries(told)) found.setAttribute(key, value);
  found.append(...children.filter((child) => child !== null));
  return found;
}

function draw(tag, told, text) {
  const found = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(told)) found.setAttribute(key, value);
  if (text !== undefined) found.textContent = text;
  return found;
}

const number = (value) => (value === null || value === undefined ? "–" : Number(value).toPrecision(3));
const words = (name) => name.replaceAll("_", " ");

function clock(text, now) {
  if (!text) return "–";
  const when = new Date(text);
  const same = when.toDateString() === new Date(now).toDateString();
  const time = when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false });
  return same ? time : `${when.toLocaleDateString([], { day: "numeric", month: "short" })} ${time}`;
}

function size(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let step = 0;
  for (; bytes >= 1000 && step < units.length - 1; step += 1) bytes /= 1000;
  return step === 0 ? `${bytes} bytes` : `${bytes.toPrecision(3)} ${units[step]}`;
}

function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 129600 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} days`;
}

function pairs(list, rows) {
  list.replaceChildren(...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

// ── charts ──────────────────────────────────────────────────────────────────────────────────────────────────
function range(rows) {
  const known = rows.flat().filter((value) => value !== null);
  if (known.length === 0) return null;
  const low = Math.min(...known), high = Math.max(...known);
  return high > low ? [low, high] : [low - 0.5 * Math.abs(low || 1), high + 0.5 * Math.abs(high || 1)];
}

function chart(title, values, limits, rounds) {
  const known = values.map((value, index) => [index, value]).filter(([, value]) => value !== null);
  if (known.length === 0 || limits === null) return null;
  const [left, right, top, bottom, width] = [38, 6, 6, 58, 300];
  const x = (index) => left + (rounds > 1 ? index / (rounds - 1) : 0.5) * (width - left - right);
  const y = (value) => bottom - (value - limits[0]) / (limits[1] - limits[0]) * (bottom - top);
  const [first, last] = [known[0], known[known.length - 1]];
  const said = `${title}: ${number(first[1])} in round ${first[0] + 1}, ${number(last[1])} in round ${last[0] + 1}`;
  const svg = draw("svg", { viewBox: `0 0 ${width} 72`, role: "img", "aria-label": said });
  for (const value of limits) {
    svg.append(draw("line", { class: "axis", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(draw("text", { x: left - 4, y: y(value) + 3, "text-anchor": "end" }, number(value)));
  }
  svg.append(draw("text", { x: left, y: 70 }, "round 1"));
  if (rounds > 1) svg.append(draw("text", { x: width - right, y: 70, "text-anchor": "end" }, String(rounds)));
  let line = [];
  const end = () => {
    if (line.length > 1) svg.append(draw("polyline", { class: "line", points: line.join(" ") }));
    line = [];
  };
  values.forEach((value, index) => {  // a missed round is a gap
    if (value === null) { end(); return; }
    line.push(`${x(index).toFixed(1)},${y(value).toFixed(1)}`);
    const alone = (values[index - 1] ?? null) === null && (values[index + 1] ?? null) === null;
    if (alone || index === last[0]) svg.append(draw("circle", { class: "dot", cx: x(index), cy: y(value), r: 2.75 }));
  });
  end();
  const caption = make("figcaption", {}, make("span", {}, title), make("span", {}, number(last[1])));
  return make("figure", {}, caption, svg);
}

// ── parts of the page ───────────────────────────────────────────────────────────────────────────────────────
function stateOf(site, now, live) {
  const [colour, sign, word] = STATES[site.state] ?? STATES.unknown;
  if (!live) {
    if (site.state === "refused" || site.state === "revoked") return [colour, sign, word];
    return site.state === "unknown" || site.state === "away" ? ["off", "○", "was not connected"] : ["off", "○", "was connected"];
  }
  if (site.state === "away" && !site.seen) return [colour, sign, "never connected"];
  const since = site.since && site.state !== "connected" ? ` since ${clock(site.since, now)}` : "";
  return [colour, sign, word + since];
}

function card(site, unit, limits, now, live, finished) {
  const [colour, sign, text] = stateOf(site, now, live);
  const pill = finished ? null : make("span", { class: `pill ${colour}` }, make("span", { "aria-hidden": "true" }, `${sign} `), text);
  const head = make("div", { class: "head" }, make("h3", {}, site.name), pill);
  const list = make("dl");
  const metric = unit ? unit.metric : null;
  const rows = [["last seen", clock(site.seen, now)], ["rounds missed", String(site.missed)]];
  if (metric) rows.push([`${words(metric)}, validation`, number(site.validation[metric])], ["training loss", number(site.loss)]);
  rows.push(["to it", size(site.bytes_down)], ["from it", size(site.bytes_up)]);
  pairs(list, rows);
  let wait = null;
  if (live && site.until) wait = make("p", { class: "wait" }, `Waited for until ${clock(site.until, now)}; then it goes on without this site.`);
  else if (live && site.answered && site.state === "connected") wait = make("p", { class: "wait quiet" }, "Its answer is in.");
  const why = site.why ? make("p", { class: "why" }, site.why) : null;
  const charts = unit ? [chart(words(unit.metric), site.scores, limits.scores, unit.rounds), chart("training loss", site.losses, limits.losses, unit.rounds)] : [];
  const edge = live && ["warn", "bad"].includes(colour) ? ` ${colour}` : "";
  return make("article", { class: `card${edge}` }, head, wait, why, list, ...charts);
}

function showProgress(status, condition) {
  const unit = status.unit, done = status.units.filter((line) => line.done).length;
  at("now").hidden = status.units.length === 0;
  const parts = unit ? (unit.round / unit.rounds) : 0;
  const partly = condition === "done" || (unit && status.units[unit.number - 1]?.done) ? 0 : parts;
  const all = (done + partly) / Math.max(1, status.units.length);
  const label = unit && condition !== "done"
    ? `Unit ${unit.number} of ${status.units.length}: arm ${unit.arm}, seed ${unit.seed}; ${unit.round} of ${unit.rounds} rounds done`
    : `${done} of ${status.units.length} units done${unit ? `; figures are of the last one: arm ${unit.arm}, seed ${unit.seed}` : ""}`;
  const bar = make("progress", { max: "1", value: String(all), "aria-label": `whole study: ${Math.round(100 * all)} %` });
  at("progress").replaceChildren(make("p", {}, label), bar, make("p", { class: "quiet" }, `${Math.round(100 * all)} % of the study`));
  const rows = [];
  if (unit) {
    rows.push([`best ${words(unit.metric)}`, unit.best_round ? `${number(unit.best_score)} (round ${unit.best_round})` : "–"]);
    if (condition === "running") rows.push(["this unit is done in about", span(unit.seconds_left)]);
    rows.push(["models to sites", size(unit.bytes_down)], ["uploads from sites", size(unit.bytes_up)]);
    if (unit.delta !== null) rows.push(["privacy spent", `ε ${number(unit.epsilon)}, δ ${unit.delta.toExponential()}`]);
  }
  pairs(at("figures"), rows);
}

function showSites(status, now, live, finished) {
  at("sites-section").hidden = status.sites.length === 0;
  const back = status.sites.filter((site) => site.answered).length;
  const waits = status.sites.some((site) => site.until);
  at("step").textContent = live && status.doing ? `Now: ${status.doing}${waits ? ` – ${back} of ${status.sites.length} answers are in` : ""}` : "";
  const limits = { scores: range(status.sites.map((s) => s.scores)), losses: range(status.sites.map((s) => s.losses)) };
  at("sites").replaceChildren(...status.sites.map((site) => card(site, status.unit, limits, now, live, finished)));
  const odd = live ? status.sites.filter((site) => ["late", "away", "refused", "revoked"].includes(site.state)) : [];
  at("attention").hidden = odd.length === 0;
  at("attention").textContent = odd.length === 0 ? "" : `To look at: ${odd.map((site) => `${site.name} ${stateOf(site, now, true)[2]}`).join("; ")}.`;
}

function showUnits(status) {
  at("units-section").hidden = status.units.length < 2;
  const metric = status.unit ? words(status.unit.metric) : "score";
  const head = make("tr", {}, ...["unit", "state", metric, "of round"].map((t) => make("th", { scope: "col" }, t)));
  const rows = status.units.map((line) => make("tr", {}, make("td", {}, line.key),
    make("td", {}, line.done ? "done" : status.unit && line.key === status.unit.key ? "at hand" : "waits"),
    make("td", { class: "number" }, number(line.best_score)), make("td", { class: "number" }, String(line.best_round ?? "–"))));
  at("units").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
}

function showLog(status, now) {
  at("log-section").hidden = status.lines.length === 0;
  at("log").replaceChildren(...[...status.lines].reverse().slice(0, 20).map((line) =>
    make("li", { class: line.level }, `${clock(line.time, now)}  ${line.level === "warning" ? "Warning: " : ""}${line.text}`)));
}

let spoken = "";
function speak(told, status) {
  const text = `${CONDITIONS[told.condition][1]}. ` + (status ? status.sites.map((s) => `${s.name}: ${STATES[s.state][2]}`).join("; ") : "");
  if (text !== spoken) { spoken = text; at("spoken").textContent = text; }
}

function alarm(text, colour = "bad") {
  const place = at("alarm");
  if (place.innerText !== text) place.innerText = text;  // keeps line breaks
  place.className = `alarm ${colour}`;
  place.hidden = text === "";
}

function show(told) {
  const status = told.status, live = told.condition === "running";
  const [colour, word] = CONDITIONS[told.condition];
  const pill = at("condition");
  pill.className = `pill ${colour}`;
  pill.textContent = word;
  speak(told, status);
  at("fresh").textContent = `Looked at ${new Date(told.now).toLocaleTimeString([], { hour12: false })}.`;
  if (status === null) {
    at("name").textContent = told.folder;
    alarm("");
    at("about").textContent = "The coordinator has not been started yet. This page shows it when it is.";
    return;
  }
  document.title = `${word}: ${status.federation}`;
  at("name").textContent = `Federation ${status.federation}`;
  at("about").replaceChildren(`Study ${status.study}, hash `, make("code", { title: status.study_hash }, status.study_hash.slice(0, 12)),
    `; coordinator started ${clock(status.started, told.now)}, last word ${clock(status.written, told.now)}`);
  if (status.failure) alarm(`${status.failure.message}\nTo do: ${status.failure.fix}\n(error ${status.failure.code}, exit code ${told.exit_code})`);
  else if (told.condition === "killed") alarm("The coordinator is not running and did not say why: killed, or its machine was restarted. Starting it again goes on from the last finished round.");
  else if (told.condition === "stopped") alarm("Stopped on purpose. Finished rounds are saved; starting the coordinator again goes on from them.", "warn");
  else alarm("");
  showProgress(status, told.condition);
  showSites(status, told.now, live, told.condition === "done");
  showUnits(status);
  showLog(status, told.now);
}

async function look() {
  try {
    const answer = await fetch("/status.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(`the status cannot be read (${answer.status})`);
    show(await answer.json());
  } catch (problem) {
    const gone = problem instanceof TypeError;
    alarm(gone ? "The program behind this page has ended. What is shown is old; start `morphfed federation watch --serve` again." : `Something is wrong: ${problem.message}.`);
  }
  setTimeout(look, EVERY);
}

look();
