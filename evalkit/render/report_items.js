// One item: its row in the table, and the panel with the answers side by side.

const CHANGES = {
  broken: ['▼', 'broken', 'right before, wrong now'],
  fixed: ['▲', 'fixed', 'wrong before, right now'],
  'both-pass': ['✓', 'right both', 'right before and now'],
  'both-fail': ['✕', 'wrong both', 'wrong before and now'],
};
const OUTCOME_SIGNS = { pass: '✓', fail: '✕', truncated: '…', refused: '⊘', unparsable: '⌁', infra_error: '⚠' };
const view = { against: 'expected', laidOut: true };

const plain = (name) => name.replaceAll('_', ' ');
const whole = (value) => Math.round(value).toLocaleString('en');

function outcomeBadge(outcome) {
  return element('span', { className: `outcome ${outcome}`, title: data.outcomes[outcome] || outcome },
    element('b', { 'aria-hidden': 'true' }, OUTCOME_SIGNS[outcome] || '·'), plain(outcome));
}

function changeBadge(item) {
  const [sign, name, title] = CHANGES[item.change] || ['', '', ''];
  return name ? element('span', { className: `change ${item.change}`, title },
    element('b', { 'aria-hidden': 'true' }, sign), name) : outcomeBadge(item.candidate.outcome);
}

/** The last user turn: what was asked. */
function question(item) {
  for (let at = item.prompt.length - 1; at >= 0; at--) if (item.prompt[at][0] === 'user') return item.prompt[at][1];
  return item.prompt.length ? item.prompt[item.prompt.length - 1][1] : '';
}

/** At most `length` characters on one line, around the first searched word where there is one. */
function snippet(text, words, length = 160) {
  const near = words.length ? text.slice(0, 200000).toLowerCase().indexOf(words[0]) : -1;
  const from = near > length / 2 ? near - Math.floor(length / 3) : 0;
  const cut = text.slice(from, from + length).replace(/[\n\t ]+/g, ' ');
  return marked((from ? '…' : '') + cut + (text.length > from + length ? '…' : ''), words);
}

function itemRow(item, words) {
  const answer = item.candidate;
  const id = element('button', { type: 'button', className: 'item-id', 'aria-expanded': 'false' }, ...marked(item.id.slice(0, 200), words));
  const asked = question(item);
  const why = item.why || answer.reason || (answer.outcome === 'pass' ? '' : plain(answer.outcome));
  return element('tr', { className: 'item', 'data-at': item.at },
    element('td', { className: 'c-change' }, changeBadge(item)),
    element('th', { scope: 'row', className: 'c-item' }, id, asked ? element('span', { className: 'asked', dir: 'auto' }, ...snippet(asked, words)) : null),
    element('td', { className: 'c-answer' }, answer.text
      ? element('span', { className: 'answer-line', dir: 'auto' }, ...snippet(answer.text, words)) : element('i', {}, 'empty answer')),
    element('td', { className: 'c-why' }, item.cause ? element('span', { className: 'cause' }, item.change === 'fixed' ? 'was: ' : '', ...snippet(plain(item.cause), words, 80)) : null,
      why ? element('span', { className: 'why' }, ...snippet(why, words, 120)) : null),
    element('td', { className: 'c-ms num' }, answer.ms === null ? '–' : whole(answer.ms)),
    element('td', { className: 'c-tokens num' }, answer.tokens === null ? '–' : whole(answer.tokens)));
}

/** The open item: answers side by side, what each validator said, the prompt. */
function itemPanel(item, redraw) {
  const columns = [];
  if (item.expected !== null) columns.push(answerPanel('Expected', item.expected, null, null));
  const other = { expected: item.expected, answers: null }[view.against];
  if (item.baseline) {
    columns.push(answerPanel('Baseline', item.baseline.text, item.baseline, other));
  }
  const against = view.against === 'answers' && item.baseline ? item.baseline.text : other;
  columns.push(answerPanel('Candidate', item.candidate.text, item.candidate, against));
  return element('div', { className: 'panel-body', role: 'region', 'aria-label': `Item ${named(item.id).slice(0, 80)}` },
    panelHead(item, redraw),
    element('div', { className: `answers of-${columns.length}` }, ...columns),
    scoreTable(item),
    repeatsBlock(item.baseline ? 'Repeats of the candidate' : 'Repeats', item.candidate),
    item.baseline ? repeatsBlock('Repeats of the baseline', item.baseline) : null,
    item.candidate.context ? folded('What was put into the prompt (ids)', (place) => pre(place, 'context', item.candidate.context)) : null,
    promptBlock(item.baseline_prompt ? 'Prompt of the candidate' : 'Prompt', item.prompt),
    item.baseline_prompt ? promptBlock('Prompt of the baseline', item.baseline_prompt) : null);
}

function panelHead(item, redraw) {
  const tags = Object.entries(item.tags).map(([key, value]) =>
    element('span', { className: 'tag' }, ...visible(`${key}: ${value}`)));
  const choices = [['none', 'no marks']];
  if (item.baseline) choices.unshift(['answers', 'baseline']);
  if (item.expected !== null) choices.unshift(['expected', 'expected']);
  const select = element('select', { 'aria-label': 'Mark differences from' },
    ...choices.map(([value, label]) => element('option', { value, selected: value === view.against }, label)));
  select.addEventListener('change', () => { view.against = select.value; redraw('select'); });
  const box = element('input', { type: 'checkbox', checked: view.laidOut });
  box.addEventListener('change', () => { view.laidOut = box.checked; redraw('input'); });
  return element('div', { className: 'panel-head' },
    element('div', { className: 'panel-tags' }, changeBadge(item), ...tags,
      item.why ? element('span', { className: 'why' }, ...visible(item.why.slice(0, 2000))) : null),
    element('div', { className: 'panel-tools' },
      element('label', {}, 'Differences from ', select),
      element('label', {}, box, ' Lay out JSON, keys sorted')));
}

function answerPanel(title, text, answer, against) {
  const compared = against !== null && against !== undefined;
  const theirsLaid = compared && view.laidOut ? layOut(against) : null;
  // Both sides are laid out or neither: JSON that lacks a brace is compared with its expected text as they were written.
  const laid = view.laidOut && (!compared || theirsLaid !== null) ? layOut(text) : null;
  const mine = laid ?? text;
  const theirs = compared ? (laid === null ? against : theirsLaid) : null;
  const equal = theirs !== null && mine === theirs;
  const parts = theirs === null || equal || mine.length > 100000 || theirs.length > 100000 ? null : difference(theirs, mine);
  const place = element('pre', { className: 'answer', dir: 'auto', tabIndex: 0, 'aria-label': `${title}, text` });
  const panel = element('section', { className: `answer-panel ${title.toLowerCase()}` },
    element('h4', {}, title, answer ? outcomeBadge(answer.outcome) : null), place);
  if (mine === '') place.append(element('i', {}, 'empty'));
  else if (parts) place.append(...differenceNodes(parts));
  else appendLong(place, mine, visible);
  panel.append(answerNotes(answer, text, { equal, laid: laid !== null && laid !== text, apart: theirs !== null && !equal && !parts }));
  return panel;
}

function answerNotes(answer, text, { equal, laid, apart }) {
  const notes = [];
  if (equal) notes.push(view.against === 'answers' ? 'same as the baseline' : 'same as expected');
  if (apart) notes.push('too different to mark');
  if (laid) notes.push('JSON, laid out');
  if (answer) {
    if (answer.ms !== null) notes.push(`${whole(answer.ms)} ms`);
    if (answer.ttft !== null) notes.push(`first token ${whole(answer.ttft)} ms`);
    if (answer.tokens !== null) notes.push(`${whole(answer.tokens)} tokens`);
    if (answer.finish) notes.push(`finish: ${answer.finish.slice(0, 60)}`);
    if (answer.cost) notes.push(answer.cost);
    if (answer.attempts) notes.push(`answered at attempt ${answer.attempts}`);
  }
  notes.push(`${whole(text.length)} characters`);
  return element('p', { className: 'answer-notes' }, ...visible(notes.join(' · ')));
}

function scoreTable(item) {
  const names = [...new Set([...Object.keys(item.candidate.scores), ...Object.keys(item.baseline ? item.baseline.scores : {})])];
  if (!names.length) return null;
  const cell = (answer, name) => {
    const score = answer && answer.scores[name];
    if (!score) return element('td', {}, '–');
    const said = score.pass === null ? score.score || '–' : score.pass ? '✓ pass' : '✕ fail';
    const extra = score.pass !== null && score.score && !['0', '1', '0.0', '1.0'].includes(score.score) ? ` (${score.score})` : '';
    return element('td', { className: score.pass === null ? '' : score.pass ? 'good' : 'bad' }, said + extra,
      score.reason ? element('small', {}, ...visible(score.reason.slice(0, 600))) : null);
  };
  return element('table', { className: 'validators' },
    element('caption', { className: 'visually-hidden' }, 'What each validator said'),
    element('thead', {}, element('tr', {}, element('th', { scope: 'col' }, 'Validator'),
      item.baseline ? element('th', { scope: 'col' }, 'Baseline') : null, element('th', { scope: 'col' }, 'Candidate'))),
    element('tbody', {}, ...names.map((name) => element('tr', {}, element('th', { scope: 'row' }, ...visible(name)),
      item.baseline ? cell(item.baseline, name) : null, cell(item.candidate, name)))));
}

/** A part that is filled when it is first opened. */
function folded(title, fill) {
  const place = element('div', { className: 'turns' });
  const block = element('details', { className: 'prompt' }, element('summary', {}, title), place);
  block.addEventListener('toggle', () => { if (!place.childNodes.length) fill(place); });
  return block;
}

/** One text with its heading, appended to a place. */
function pre(place, title, text, ...beside) {
  const body = element('pre', { className: 'answer', dir: 'auto', tabIndex: 0, 'aria-label': `${named(title).slice(0, 80)}, text` });
  place.append(element('section', {}, element('h4', {}, element('span', {}, ...visible(title)), ...beside), body));
  appendLong(body, text, visible);
}

function promptBlock(title, turns) {
  if (!turns.length) return null;
  return folded(`${title}, ${turns.length} ${turns.length === 1 ? 'turn' : 'turns'}`,
    (place) => { for (const [role, text] of turns) pre(place, role, text); });
}

function repeatsBlock(title, answer) {
  if (!answer.repeats) return null;
  const right = answer.repeats.filter(([outcome]) => outcome === 'pass').length;
  return folded(`${title}: ${right} of ${answer.repeats.length} right`, (place) => {
    answer.repeats.forEach(([outcome, text, ms], at) =>
      pre(place, `Repeat ${at + 1}${ms === null ? '' : `, ${whole(ms)} ms`}`, text, outcomeBadge(outcome)));
  });
}
