// The list of items: filters, search, sort, pages, keyboard. Only one page of rows is in the document at a time.

const PAGE = matchMedia('(max-width: 760px)').matches ? 20 : 50;
const items = data.items;
items.forEach((item, at) => { item.at = at; });
const FIRST_SORT = 'flips';
const state = { query: '', sort: FIRST_SORT, page: 0, filters: {}, open: null, focus: 0 };
let found = [];
const get = (id) => document.getElementById(id);

const SORTS = {
  flips: ['broken first', (item) => ['broken', 'fixed', 'both-fail', '', 'both-pass'].indexOf(item.change)],
  order: ['as in the data', () => 0],
  id: ['id', (item) => item.id],
  slow: ['slowest first', (item) => -(item.candidate.ms ?? -1)],
  fast: ['fastest first', (item) => item.candidate.ms ?? Infinity],
  long: ['longest answer first', (item) => -(item.candidate.tokens ?? item.candidate.text.length)],
  short: ['shortest answer first', (item) => item.candidate.tokens ?? item.candidate.text.length],
};
if (!data.compared) SORTS.flips = ['wrong first', (item) => (item.candidate.outcome === 'pass' ? 1 : 0)];
const COLUMNS = [
  ['Result', 'flips', null], ['Item', 'id', null], ['Answer', null, null], ['Why', null, null],
  ['ms', 'slow', 'fast'], ['tokens', 'long', 'short'],
];

// Filters: name -> {label, of(item): the values of an item, words(value): how an option reads}.
const FILTERS = {
  change: { label: 'Change', of: (item) => [item.change], words: (value) => (CHANGES[value] ? CHANGES[value][1] : value) },
  outcome: { label: 'Outcome', of: (item) => [item.candidate.outcome], words: plain },
  cause: { label: 'Cause', of: (item) => [item.cause], words: plain },
  validator: {
    label: 'Validator',
    of: (item) => Object.entries(item.candidate.scores).filter(([, score]) => score.pass !== null)
      .map(([name, score]) => `${name}:${score.pass ? 'pass' : 'fail'}`),
    words: (value) => value.replace(/:(pass|fail)$/, ' · $1'),
  },
  slice: {
    label: data.slices.length === 1 ? data.slices[0] : 'Slice',
    of: (item) => data.slices.filter((key) => key in item.tags)
      .map((key) => JSON.stringify([key, item.tags[key]])),
    words: (value) => {
      const [key, tag] = JSON.parse(value);
      return data.slices.length === 1 ? tag : `${key}: ${tag}`;
    },
  },
};

const haystacks = new Map();
function haystack(item) {
  if (!haystacks.has(item)) {
    haystacks.set(item, [item.id, question(item), item.expected ?? '', item.candidate.text, item.baseline ? item.baseline.text : '',
      item.cause, item.why, item.candidate.reason].join('\n').toLowerCase());
  }
  return haystacks.get(item);
}

const searched = () => state.query.toLowerCase().split(/\s+/).filter(Boolean);

function apply() {
  const words = searched();
  const wanted = Object.entries(state.filters).filter(([, value]) => value);
  const key = SORTS[state.sort][1];
  found = items.filter((item) => wanted.every(([name, value]) => FILTERS[name].of(item).includes(value))
    && words.every((word) => haystack(item).includes(word)));
  const keys = new Map(found.map((item) => [item, key(item)]));
  found.sort((a, b) => (keys.get(a) < keys.get(b) ? -1 : keys.get(a) > keys.get(b) ? 1 : 0));
  state.page = Math.min(state.page, Math.max(0, Math.ceil(found.length / PAGE) - 1));
  draw(words);
}

function draw(words) {
  const from = state.page * PAGE;
  const page = found.slice(from, from + PAGE);
  const head = element('tr', {}, ...COLUMNS.map(header));
  const body = element('tbody', {}, ...page.map((item) => itemRow(item, words)));
  const table = element('table', { className: 'items' }, element('caption', { className: 'visually-hidden' }, 'Items'),
    element('thead', {}, head), body);
  body.addEventListener('click', (event) => {
    const row = event.target.closest('tr.item');
    if (row && !getSelection().toString()) toggle(row);
  });
  get('table-place').replaceChildren(table);
  get('count').textContent = counted(from, page.length);
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  get('page-now').textContent = `Page ${state.page + 1} of ${pages}`;
  get('previous').disabled = state.page === 0;
  get('next').disabled = state.page >= pages - 1;
  const open = rowOf(state.open);
  if (open) show(open);
  remember();
}

function counted(from, shown) {
  const narrowed = found.length !== items.length;
  if (!items.length) return 'This report has no items.';
  if (!found.length) return `No item matches; all ${whole(items.length)} are filtered out.`;
  return `${narrowed ? `${whole(found.length)} of ${whole(items.length)} items match` : `${whole(items.length)} items`}`
    + (found.length > shown ? `, ${whole(from + 1)} to ${whole(from + shown)} shown` : '');
}

function header([label, first, second]) {
  const number = label === 'ms' || label === 'tokens';
  const cell = element('th', { scope: 'col', className: number ? 'num' : '' });
  if (!first) { cell.append(label); return cell; }
  const active = state.sort === first || (second && state.sort === second);
  const arrow = active ? (state.sort === 'slow' || state.sort === 'long' ? ' ↓' : ' ↑') : '';
  const button = element('button', { type: 'button', title: `Sort: ${SORTS[first][0]}` }, label, arrow);
  if (active) cell.setAttribute('aria-sort', arrow === ' ↓' ? 'descending' : 'ascending');
  button.addEventListener('click', () => {
    state.sort = second && state.sort === first ? second : active && !second ? 'order' : first;
    state.page = 0;
    get('sort').value = state.sort;
    apply();
    [...document.querySelectorAll('table.items th button')].find((other) => other.title === button.title)?.focus();
  });
  cell.append(button);
  return cell;
}

const listed = () => [...document.querySelectorAll('tr.item')];
const itemOf = (row) => items[Number(row.dataset.at)];
const rowOf = (item) => (item ? listed().find((row) => itemOf(row) === item) : undefined);

function close() {
  document.querySelector('tr.open-panel')?.remove();
  const row = document.querySelector('tr.item.open');
  row?.classList.remove('open');
  row?.querySelector('.item-id').setAttribute('aria-expanded', 'false');
  state.open = null;
}

function show(row) {
  const before = row.getBoundingClientRect().top;
  close();
  const item = itemOf(row);
  const cell = element('td', { colSpan: COLUMNS.length });
  const redraw = (selector) => {
    cell.replaceChildren(itemPanel(item, redraw));
    cell.querySelector(`.panel-tools ${selector}`)?.focus();
  };
  cell.append(itemPanel(item, redraw));
  row.after(element('tr', { className: 'open-panel' }, cell));
  row.classList.add('open');
  row.querySelector('.item-id').setAttribute('aria-expanded', 'true');
  state.open = item;
  state.focus = listed().indexOf(row);
  scrollBy(0, row.getBoundingClientRect().top - before); // closing an item above must not move this one
  remember();
}

function toggle(row) {
  if (row.classList.contains('open')) { close(); remember(); } else show(row);
  row.querySelector('.item-id').focus({ preventScroll: true });
}

function move(step) {
  const rows = listed();
  if (!rows.length) return;
  const at = rows.findIndex((row) => row.contains(document.activeElement));
  const here = at >= 0 ? at + step : state.open !== null ? state.focus + step : step > 0 ? 0 : rows.length - 1;
  if (here < 0 || here >= rows.length) { turn(step); return; }
  state.focus = here;
  if (state.open !== null) show(rows[here]);
  rows[here].querySelector('.item-id').focus({ preventScroll: true });
  rows[here].scrollIntoView({ block: state.open === null ? 'nearest' : 'start' });
}

function turn(step) {
  const last = Math.ceil(found.length / PAGE) - 1;
  if (state.page + step < 0 || state.page + step > last) return;
  const wasOpen = state.open !== null;
  close();
  state.page += step;
  draw(searched());
  const rows = listed();
  const row = step > 0 ? rows[0] : rows[rows.length - 1];
  state.focus = rows.indexOf(row);
  if (wasOpen) show(row);
  row.querySelector('.item-id').focus({ preventScroll: true });
  (step > 0 ? get('items') : row).scrollIntoView({ block: 'start' });
}

// The address keeps the view (after #), so that a link to a filtered list or an item can be sent to a colleague.
function remember() {
  const kept = new URLSearchParams(Object.entries({ ...state.filters, q: state.query, item: state.open ? state.open.id : '' }).filter(([, value]) => value));
  if (state.sort !== FIRST_SORT) kept.set('sort', state.sort);
  const text = kept.toString();
  try {
    history.replaceState(null, '', location.href.split('#')[0] + (text ? '#' + text : ''));
  } catch { /* a sandboxed frame has no history */ }
}

function recall(text, jump) {
  const kept = new URLSearchParams(text);
  const known = ['q', 'sort', 'item', ...Object.keys(FILTERS)].some((name) => kept.has(name));
  if (!known) return;
  for (const name of Object.keys(FILTERS)) state.filters[name] = kept.get(name) || '';
  state.query = kept.get('q') || '';
  if (kept.get('sort') in SORTS) state.sort = kept.get('sort');
  state.open = items.find((item) => item.id === kept.get('item')) ?? null;
  state.page = 0;
  syncControls();
  apply();
  const at = found.indexOf(state.open);
  if (at >= PAGE) { state.page = Math.floor(at / PAGE); draw(searched()); }
  if (jump) (rowOf(state.open) || get('items')).scrollIntoView({ block: 'start' });
}

function syncControls() {
  get('search').value = state.query;
  get('sort').value = state.sort;
  for (const name of Object.keys(FILTERS)) {
    const select = get(`filter-${name}`);
    if (!select) continue;
    const value = state.filters[name] || '';
    if (value && ![...select.options].some((option) => option.value === value)) select.append(element('option', { value }, named(value)));
    select.value = value;
    select.classList.toggle('on', Boolean(value));
  }
}

function buildFilters() {
  for (const [name, filter] of Object.entries(FILTERS)) {
    const counts = new Map();
    for (const item of items) for (const value of filter.of(item)) if (value) counts.set(value, (counts.get(value) || 0) + 1);
    if (counts.size < 2 && !((name === 'cause' || name === 'change') && counts.size)) continue;
    const values = [...counts].sort(([a, n], [b, m]) => (name === 'validator' ? (a < b ? -1 : 1) : m - n || (a < b ? -1 : 1)));
    const select = element('select', { id: `filter-${name}` }, element('option', { value: '' }, 'all'),
      ...values.slice(0, 500).map(([value, n]) => element('option', { value }, `${named(filter.words(value)).slice(0, 80)} (${whole(n)})`)));
    select.addEventListener('change', () => set({ [name]: select.value }));
    get('selects').append(element('label', {}, element('span', {}, named(filter.label)), select));
  }
  get('sort').append(...Object.entries(SORTS).map(([value, [label]]) => element('option', { value }, label)));
}

function set(filters) {
  Object.assign(state.filters, filters);
  state.page = 0;
  close();
  syncControls();
  apply();
}

function clear() {
  state.query = '';
  state.filters = {};
  state.sort = FIRST_SORT;
  set({});
}

const KEYS = {
  j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
  o: () => { const row = document.activeElement.closest?.('tr.item') || listed()[state.focus]; if (row) toggle(row); },
  '/': () => get('search').focus(), '[': () => turn(-1), ']': () => turn(1),
  b: () => set({ change: 'broken' }), f: () => set({ change: 'fixed' }), a: clear,
  '?': () => get('help').showModal(),
  Escape: () => { const row = rowOf(state.open); close(); remember(); row?.querySelector('.item-id').focus(); },
};

function onKey(event) {
  const typing = event.target.closest('input, select, textarea, dialog');
  if (event.ctrlKey || event.metaKey || event.altKey || get('help').open) return;
  if (typing && !(event.key === 'Escape' && event.target.id === 'search')) return;
  const inText = event.target.closest('pre');
  if (event.key.startsWith('Arrow') && (inText || !event.target.closest('table.items'))) return;
  if ((event.key === 'b' || event.key === 'f') && !data.compared) return;
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  if (typing) { event.target.blur(); return; }
  act();
}

let waiting = 0;
buildFilters();
get('without-script').hidden = true;
get('baseline-lost').hidden = !data.lost;
get('filters').hidden = get('pager').hidden = !items.length;
get('search').addEventListener('input', () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => { state.query = get('search').value; state.page = 0; close(); apply(); }, 90);
});
get('sort').addEventListener('change', () => { state.sort = get('sort').value; state.page = 0; apply(); });
get('filters').addEventListener('submit', (event) => event.preventDefault());
get('filters').addEventListener('reset', (event) => { event.preventDefault(); clear(); });
get('previous').addEventListener('click', () => turn(-1));
get('next').addEventListener('click', () => turn(1));
get('help-open').addEventListener('click', () => get('help').showModal());
document.addEventListener('keydown', onKey);
document.addEventListener('click', (event) => {
  const link = event.target.closest('[data-filter]');
  if (!link) return;
  state.query = '';
  state.filters = {};
  set(Object.fromEntries(new URLSearchParams(link.dataset.filter)));
  get('items').scrollIntoView();
  get('items').focus({ preventScroll: true });
});
window.addEventListener('hashchange', () => recall(location.hash.slice(1), true));
const asked = location.hash.slice(1);
syncControls();
if (new URLSearchParams(asked).size && asked.includes('=')) recall(asked, true);
else { const keep = location.hash; apply(); if (keep) try { history.replaceState(null, '', keep); } catch { /* as above */ } }
