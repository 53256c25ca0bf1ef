// Text of models, as text: hidden characters made visible, JSON laid out without changing a token, differences marked.
// Nothing here ever makes markup from a string.

const data = JSON.parse(document.getElementById('data').textContent);

const hiddenCharacters = new RegExp(
  '[' + data.hidden.map(([low, high]) => `\\u{${low.toString(16)}}-\\u{${high.toString(16)}}`).join('') + ']', 'gu');

/** An element with properties, attributes (names with a dash or in lower case ARIA) and children. */
function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key in made && !key.includes('-')) made[key] = value;
    else made.setAttribute(key, value === true ? '' : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const codeName = (character) => 'U+' + character.codePointAt(0).toString(16).toUpperCase().padStart(4, '0');
const hiddenName = (character) => data.labels[character.codePointAt(0)] || codeName(character);
const MOST_MARKS = 5000;

/** The text with each hidden character as its name in brackets, for places that take strings only. */
const named = (text) => text.replace(hiddenCharacters, (character) => `[${hiddenName(character)}]`);

/**
 * The text as nodes, each hidden character replaced by a marked name such as RLO or U+200D; after thousands of them the
 * names are plain text, so that a megabyte of NULs stays one text.
 */
function visible(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(hiddenCharacters)) {
    if (nodes.length > MOST_MARKS) break;
    if (match.index > from) nodes.push(text.slice(from, match.index));
    nodes.push(element('span', { className: 'hidden-char', title: codeName(match[0]) }, hiddenName(match[0])));
    from = match.index + match[0].length;
  }
  nodes.push(named(text.slice(from)));
  return nodes;
}

/** `visible`, with every occurrence of the searched words marked. */
function marked(text, words) {
  const pattern = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('|');
  if (!pattern) return visible(text);
  return text.split(new RegExp(`(${pattern})`, 'giu')).flatMap((part, index) =>
    index % 2 ? [element('mark', {}, ...visible(part))] : visible(part));
}

const JSON_TOKEN = /\s+|"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/gu;

/**
 * JSON laid out with two spaces and sorted keys, each scalar as it was written (1.0 stays 1.0, a key given twice stays
 * twice); null when the text is not one JSON object or list.
 */
function layOut(text) {
  const start = text.trimStart()[0];
  if (text.length > 200000 || (start !== '{' && start !== '[')) return null;
  try { JSON.parse(text); } catch { return null; }
  const tokens = (text.match(JSON_TOKEN) || []).filter((token) => token.trim());
  let at = 0;
  const value = (indent) => {
    const open = tokens[at++];
    if (open !== '{' && open !== '[') return open;
    const close = open === '{' ? '}' : ']';
    const inner = indent + '  ';
    const members = [];
    while (tokens[at] !== close) {
      const key = open === '{' ? tokens[at++] : '';
      if (key) at++;
      members.push([key, (key ? key + ': ' : '') + value(inner)]);
      if (tokens[at] === ',') at++;
    }
    at++;
    if (open === '{') members.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
    if (!members.length) return open + close;
    return open + '\n' + members.map(([, body]) => inner + body).join(',\n') + '\n' + indent + close;
  };
  try { return value(''); } catch { return null; }
}

const WORD = /\s+|[\p{L}\p{N}_]+(?:\.\p{N}+)?|[^]/gu;
const DIFF_CELLS = 4e6;

/**
 * The difference of two texts by words: [kind, text] with kind 0 in both, -1 only in `before`, 1 only in `after`.
 * Longest common subsequence between the common ends; null when that would be too long or too little is in common for
 * the marks to help a reader.
 */
function difference(before, after) {
  const a = before.match(WORD) || [];
  const b = after.match(WORD) || [];
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head++;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const n = a.length - head - tail;
  const m = b.length - head - tail;
  if (n * m > DIFF_CELLS) return null;
  const width = m + 1;
  const longest = new Uint16Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      longest[i * width + j] = a[head + i] === b[head + j]
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  const parts = [];
  const push = (kind, text) => {
    const last = parts[parts.length - 1];
    if (last && last[0] === kind) last[1] += text; else if (text) parts.push([kind, text]);
  };
  push(0, a.slice(0, head).join(''));
  let i = 0;
  let j = 0;
  while (i < n || j < m) {
    if (i < n && j < m && a[head + i] === b[head + j]) { push(0, a[head + i]); i++; j++; }
    else if (j >= m || (i < n && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) { push(-1, a[head + i]); i++; }
    else { push(1, b[head + j]); j++; }
  }
  push(0, a.slice(a.length - tail).join(''));
  const shared = parts.reduce((sum, [kind, text]) => sum + (kind ? 0 : text.trim().length), 0);
  return shared * 3 < Math.max(before.trim().length, after.trim().length) ? null : parts;
}

/** The difference as nodes: <del> for what is missing, <ins> for what is new; both also say so to a screen reader. */
function differenceNodes(parts) {
  return parts.flatMap(([kind, text]) => {
    if (!kind) return visible(text);
    const name = kind < 0 ? 'del' : 'ins';
    return [element(name, { title: kind < 0 ? 'missing here' : 'only here' }, ...visible(text))];
  });
}

const SHOWN_AT_FIRST = 4000;

/** Append nodes for a text; a long one is cut, with a button that shows all of it. */
function appendLong(place, text, make) {
  if (text.length <= SHOWN_AT_FIRST) { place.append(...make(text)); return; }
  let end = SHOWN_AT_FIRST;
  if (/[\uD800-\uDBFF]/.test(text[end - 1])) end--;
  place.append(...visible(text.slice(0, end)), '…');
  const rest = element('button', { type: 'button', className: 'show-all' },
    `Show all ${text.length.toLocaleString('en')} characters`);
  rest.addEventListener('click', () => {
    place.replaceChildren(...visible(text));
    place.tabIndex = -1;
    place.focus();
  });
  place.after(rest);
}
