// Shows the completions of a report, group by group, and filters them.
//
// The model wrote these texts, and it may have written HTML. So text only ever goes into
// textContent. The filter is in the address of the page (#step=3&status=timeout), so that a view
// can be linked to.
"use strict";

const COMPLETIONS_AT_ONCE = 160; // or one group, if it has more

const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("filter");
const list = document.getElementById("groups");
const count = document.getElementById("count");
const more = document.getElementById("more");

let matching = []; // what the filter lets through: {group, completions}
let drawn = 0; // how many of them are on the page

function element(kind, className, text) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// ---- The filter

function addOptions(name, values) {
  for (const [value, text] of values) {
    const option = element("option", "", text);
    option.value = value;
    form.elements[name].append(option);
  }
}

function fillFilter() {
  const steps = new Set();
  const statuses = new Set();
  for (const group of data.groups) {
    steps.add(group.step);
    for (const completion of group.completions) statuses.add(completion.status);
  }
  addOptions("run", data.runs.map((name, place) => [String(place), name]));
  addOptions("step", [...steps].sort((a, b) => a - b).map((step) => [String(step), step]));
  addOptions("status", [...statuses].filter(Boolean).sort().map((status) => [status, status]));
  if (data.runs.length < 2) form.elements.run.parentElement.hidden = true;
}

function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const select of form.querySelectorAll("select")) {
    const value = wanted.get(select.name) || "";
    const known = [...select.options].some((option) => option.value === value);
    select.value = known ? value : "";
  }
}

function writeAddress() {
  const chosen = new URLSearchParams();
  for (const select of form.querySelectorAll("select")) {
    if (select.value) chosen.set(select.name, select.value);
  }
  history.replaceState(null, "", `#${chosen}`);
}

function agrees(wanted, isSo) {
  if (wanted === "") return true;
  return (wanted === "yes") === Boolean(isSo);
}

function isGroupWanted(group, wanted) {
  if (wanted.run !== "" && String(group.run) !== wanted.run) return false;
  if (wanted.step !== "" && String(group.step) !== wanted.step) return false;
  if (wanted.groups !== "" && group.flat !== (wanted.groups === "flat")) return false;
  return true;
}

function isCompletionWanted(completion, wanted) {
  if (wanted.status !== "" && completion.status !== wanted.status) return false;
  return agrees(wanted.cheating, completion.cheating) && agrees(wanted.correct, completion.correct);
}

function compareTotals(one, other, order) {
  // What has no total comes last in either order.
  if (one === null || other === null) return (one === null) - (other === null);
  return order === "best" ? other - one : one - other;
}

function applyFilter() {
  const wanted = Object.fromEntries(new FormData(form));
  matching = [];
  let completions = 0;
  for (const group of data.groups) {
    if (!isGroupWanted(group, wanted)) continue;
    const kept = group.completions.filter((completion) => isCompletionWanted(completion, wanted));
    if (kept.length === 0) continue;
    if (wanted.order) kept.sort((a, b) => compareTotals(a.total, b.total, wanted.order));
    matching.push({ group, completions: kept });
    completions += kept.length;
  }
  if (wanted.order) {
    matching.sort((a, b) =>
      compareTotals(a.completions[0].total, b.completions[0].total, wanted.order));
  }
  count.textContent = `${completions} completions in ${matching.length} groups`;
  list.replaceChildren();
  drawn = 0;
  drawMore();
}

// ---- Groups and completions

function drawMore() {
  let completions = 0;
  while (drawn < matching.length && completions < COMPLETIONS_AT_ONCE) {
    list.append(groupBox(matching[drawn]));
    completions += matching[drawn].completions.length;
    drawn += 1;
  }
  more.hidden = drawn >= matching.length;
}

function groupBox({ group, completions }) {
  const box = element("section", group.flat ? "group flat" : "group");
  const head = element("header");
  const run = data.runs.length > 1 ? `${data.runs[group.run]}, ` : "";
  head.append(element("strong", "", `${run}step ${group.step}`));
  if (group.flat) head.append(element("span", "chip bad", "no variance: nothing is learned"));
  if (completions.length < group.completions.length) {
    head.append(element("span", "chip",
      `${completions.length} of its ${group.completions.length} completions`));
  }
  const prompt = element("details");
  prompt.append(element("summary", "", "prompt"));
  prompt.append(element("pre", "", data.prompts[group.prompt]));
  const members = element("div", "members");
  members.append(...completions.map(completionBox));
  box.append(head, prompt, members);
  return box;
}

function completionBox(completion) {
  const box = element("article", completion.cheating ? "completion cheating" : "completion");
  box.append(chips(completion));
  if (completion.cheating) {
    box.append(element("div", "reason", `attempted to cheat: ${completion.cheating}`));
  }
  if (completion.detail && completion.detail !== completion.cheating) {
    box.append(element("div", "detail", completion.detail));
  }
  if (completion.turns.length > 0) {
    box.append(...completion.turns.map(turnBox));
    return box;
  }
  if (completion.thinking) {
    const thinking = element("details", "thinking");
    thinking.append(element("summary", "", "thinking"));
    thinking.append(element("pre", "", completion.thinking));
    box.append(thinking);
  }
  box.append(element("pre", "text", completion.text));
  return box;
}

function turnBox(turn) {
  const kind = turn.who === "model" ? "turn said" : "turn";
  const box = element("div", turn.who === "thinking" ? "turn thinking" : kind);
  const head = element("div", "who", turn.who);
  if (turn.status) {
    head.append(element("span", turn.status === "ok" ? "chip good" : "chip bad", turn.status));
  }
  box.append(head, element("pre", "text", turn.text));
  return box;
}

function chips(completion) {
  const line = element("div", "chips");
  const chip = (kind, text) => line.append(element("span", `chip ${kind}`, text));
  if (completion.total !== null) chip("total", `total ${completion.total}`);
  if (completion.status) chip(completion.status === "ok" ? "good" : "bad", completion.status);
  if (completion.correct === true) chip("good", "correct");
  if (completion.cheating) chip("bad", "cheating");
  for (const [name, value] of Object.entries(completion.rewards)) chip("", `${name} ${value}`);
  if (completion.advantage !== null) chip("", `advantage ${completion.advantage}`);
  return line;
}

// ---- Start

fillFilter();
readAddress();
applyFilter();
form.addEventListener("change", () => {
  writeAddress();
  applyFilter();
});
more.addEventListener("click", drawMore);
window.addEventListener("hashchange", () => {
  readAddress();
  applyFilter();
});
