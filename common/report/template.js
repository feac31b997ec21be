"use strict";
// Shows the answers side by side. All text goes through textContent: none of it can become markup.

const data = JSON.parse(document.getElementById("data").textContent);
const page = Object.fromEntries(
  ["filter", "groups", "search", "count", "examples", "more"].map(id => [id, document.getElementById(id)]));
const STEP = 20;        // so many examples more at a time: thousands at once would be slow
const MOST_CELLS = 1e6; // longer texts are not compared word by word
const words = window.Intl?.Segmenter && new Intl.Segmenter(undefined, { granularity: "word" });

const isRight = (row, system) => row.answers[system]?.is_right === true;
const FILTERS = {
  all: () => true,
  won: row => isRight(row, "distilled") && !isRight(row, "base"),
  lost: row => !isRight(row, "distilled") && isRight(row, "teacher"),
  spoilt: row => !isRight(row, "distilled") && row.references.includes(row.text),
  both: row => !isRight(row, "distilled") && !isRight(row, "teacher"),
};

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

function showExample(row) {
  const box = make("article", "example");
  box.append(make("h3", "", [...Object.values(row.groups), row.id].join(" · ")));
  box.append(showAnswer("Text", row.text));
  for (const reference of row.references) box.append(showAnswer("Reference", reference, row.text));
  for (const { key, name } of data.systems) {
    const answer = row.answers[key];
    box.append(showAnswer(name, answer.text, row.text, answer.is_right, answer.error));
  }
  return box;
}

function contains(row, text) {
  const texts = [row.id, row.text, ...row.references, ...Object.values(row.answers).map(a => a.text)];
  return texts.some(t => t.toLowerCase().includes(text));
}

let found = [];

function showMore() {
  const shown = page.examples.childElementCount;
  page.examples.append(...found.slice(shown, shown + STEP).map(showExample));
  page.more.hidden = page.examples.childElementCount >= found.length;
}

function search() {
  const text = page.search.value.trim().toLowerCase();
  const chosen = [...page.groups.children].filter(s => s.value).map(s => [s.name, s.value.slice(1)]);
  found = data.rows.filter(row => FILTERS[page.filter.value](row)
    && chosen.every(([group, value]) => row.groups[group] === value) && (!text || contains(row, text)));
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
page.filter.addEventListener("change", search);
page.groups.addEventListener("change", search);
page.search.addEventListener("input", search);
page.more.addEventListener("click", showMore);
search();
