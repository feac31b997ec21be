"use strict";
// Shows the answers side by side. All text goes through textContent: none of it can become markup.

const data = JSON.parse(document.getElementById("data").textContent);
const page = Object.fromEntries(
  ["kinds", "groups", "order", "search", "count", "examples", "more"].map(id => [id, document.getElementById(id)]));
const FIRST = 5, STEP = 20; // so many examples at first, and more at a time: thousands would be slow
const MOST_CELLS = 1e6;     // longer texts are not compared word by word
const words = window.Intl?.Segmenter && new Intl.Segmenter(undefined, { granularity: "word" });

const isRight = (row, system) => row.answers[system]?.is_right === true;
const student = row => isRight(row, "distilled"), teacher = row => isRight(row, "teacher");
const KINDS = [
  // name, test, and whether it is left out where no row is of it
  ["All", () => true],
  ["Student right, teacher wrong", row => student(row) && !teacher(row)],
  ["Student wrong, teacher right", row => !student(row) && teacher(row)],
  ["Both wrong", row => !student(row) && !teacher(row)],
  ["Both right", row => student(row) && teacher(row)],
  ["Student right, base wrong", row => student(row) && !isRight(row, "base"), true],
  ["Student spoilt a right text", row => !student(row) && row.references.includes(row.text), true],
];
const percent = share => `${(100 * share).toFixed(0)}%`;

function make(tag, style, text) {
  const node = document.createElement(tag);
  if (style) node.className = style;
  if (text !== undefined) node.textContent = text;
  return node;
}

function split(text) {
  if (!words) return text.split(/(\s+)/); // an older browser
  return Array.from(words.segment(text), part => part.segment);
}

// What became of a: a list of [tag, text], where tag is del, ins, or null for what stayed.
function diff(a, b) {
  const out = [];
  const add = (tag, text) => {
    if (out.length && out.at(-1)[0] === tag) out.at(-1)[1] += text;
    else if (text) out.push([tag, text]);
  };
  a = split(a);
  b = split(b);
  let start = 0, end = 0;
  while (start < Math.min(a.length, b.length) && a[start] === b[start]) add(null, a[start++]);
  while (end < Math.min(a.length, b.length) - start && a.at(-1 - end) === b.at(-1 - end)) end++;
  const tail = end ? a.slice(-end).join("") : "";
  compare(a.slice(start, a.length - end), b.slice(start, b.length - end), add);
  add(null, tail);
  return out;
}

// The longest common subsequence of words.
function compare(a, b, add) {
  const n = a.length, m = b.length;
  if (n * m > MOST_CELLS) {
    add("del", a.join(""));
    add("ins", b.join(""));
    return;
  }
  const best = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1));
  for (let i = n - 1; i >= 0; i--)
    for (let j = m - 1; j >= 0; j--)
      best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
  let i = 0, j = 0;
  while (i < n || j < m) {
    if (i < n && j < m && a[i] === b[j]) add(null, (j++, a[i++]));
    else if (i < n && (j === m || best[i + 1][j] >= best[i][j + 1])) add("del", a[i++]);
    else add("ins", b[j++]);
  }
}

function showAnswer(name, text, original, isRight, error) {
  const line = make("div", "answer"), who = make("div", "who", name), what = make("div", "what");
  if (isRight !== undefined) {
    line.classList.add(isRight ? "right" : "wrong");
    const mark = make("span", "mark", isRight ? "✓" : "✗");
    mark.setAttribute("aria-label", isRight ? "right" : "wrong");
    mark.setAttribute("role", "img");
    who.append(mark);
  }
  if (error || !text) what.append(make("span", "none", error ? `no answer: ${error}` : "no text"));
  else if (original === undefined || !data.rewrites) what.textContent = text;
  else for (const [tag, part] of diff(original, text)) what.append(tag ? make(tag, "", part) : part);
  line.append(who, what);
  return line;
}

// How sure the student is, and who answers where the teacher takes over what it is not sure of.
function describeConfidence(row) {
  const sure = `confidence ${percent(row.confidence)}`;
  if (data.threshold === null) return sure;
  return `${sure}: ${row.confidence >= data.threshold ? "the student answers" : "the teacher answers"}`;
}

function showExample(row) {
  const box = make("article", "example");
  box.append(make("h3", "", [...Object.values(row.groups), row.id].join(" · ")));
  box.append(showAnswer("Text", row.text));
  for (const reference of row.references) box.append(showAnswer("Reference", reference, row.text));
  for (const { key, name } of data.systems) {
    const answer = row.answers[key];
    const line = showAnswer(name, answer.text, row.text, answer.is_right, answer.error);
    if (key === "distilled" && row.confidence !== undefined)
      line.lastChild.append(make("small", "sure", describeConfidence(row)));
    box.append(line);
  }
  return box;
}

function contains(row, text) {
  const texts = [row.id, row.text, ...row.references, ...Object.values(row.answers).map(a => a.text)];
  return texts.some(t => t.toLowerCase().includes(text));
}

let found = [], kind = KINDS[0];

function showMore() {
  const shown = page.examples.childElementCount;
  page.examples.append(...found.slice(shown, shown ? shown + STEP : FIRST).map(showExample));
  page.more.hidden = page.examples.childElementCount >= found.length;
}

function search() {
  const text = page.search.value.trim().toLowerCase();
  const chosen = [...page.groups.children].filter(s => s.value).map(s => [s.name, s.value.slice(1)]);
  found = data.rows.filter(row => kind[1](row)
    && chosen.every(([group, value]) => row.groups[group] === value) && (!text || contains(row, text)));
  const sign = { surest: -1, least: 1 }[page.order.value];
  if (sign) found.sort((a, b) => sign * (a.confidence - b.confidence));
  const n = data.rows.length.toLocaleString("en"), total = data.total.toLocaleString("en");
  const of = data.rows.length < data.total ? `${n} rows, chosen by their hash from ${total}; predictions/ has the others` : `${n} rows`;
  page.count.textContent = `${found.length.toLocaleString("en")} of ${of}`;
  page.examples.replaceChildren();
  showMore();
}

for (const [group, values] of Object.entries(data.groups)) {
  const select = make("select");
  select.name = group;
  select.setAttribute("aria-label", group);
  select.append(new Option(`Any ${group}`, ""));
  for (const value of values) select.append(new Option(value, "=" + value)); // a value may be empty
  page.groups.append(select);
}
for (const each of KINDS) {
  const [name, test, isOptional] = each, count = data.rows.filter(test).length;
  if (isOptional && !count) continue;
  const button = make("button", "", `${name} `);
  button.type = "button";
  button.append(make("small", "", count.toLocaleString("en")));
  button.setAttribute("aria-pressed", each === kind);
  button.addEventListener("click", () => {
    kind = each;
    for (const other of page.kinds.children) other.setAttribute("aria-pressed", other === button);
    search();
  });
  page.kinds.append(button);
}
page.order.hidden = !data.rows.some(row => row.confidence !== undefined);
page.order.addEventListener("change", search);
page.groups.addEventListener("change", search);
page.search.addEventListener("input", search);
page.more.addEventListener("click", showMore);
search();
