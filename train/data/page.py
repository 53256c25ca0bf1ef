"""The profile as one self-contained HTML page with histograms; no script, no request to anywhere."""

from html import escape

from tunegate.core.profile import DatasetProfile, Lengths

_STYLE = """
:root { color-scheme: light dark; --bar: #2f6fb0; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, p { overflow-wrap: anywhere; } h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; width: 100%; } td, th { padding: .15rem .6rem; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; }
tr { border-bottom: 1px solid var(--line); } .facts { opacity: .8; }
figure { margin: .5rem 0 1rem; } figcaption { font-size: .9rem; opacity: .8; } svg { width: 100%; height: auto; }
rect { fill: var(--bar); } text { font: 11px system-ui, sans-serif; fill: currentColor; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 0 2rem; }
.share { width: 40%; } @media (max-width: 30rem) { .share { width: 15%; } td, th { padding: .15rem .25rem; } } .share i { display: block; height: .8rem; background: var(--bar); }
"""
_WIDTH, _HEIGHT, _FOOT = 460, 150, 34


def page(profile: DatasetProfile, title: str) -> str:
    """The page; `title` names what was profiled."""
    lengths = (
        ("Input, tokens", profile.input_tokens),
        ("Output, tokens", profile.output_tokens),
        ("Input, characters", profile.input_characters),
        ("Output, characters", profile.output_characters),
    )
    distributions = [("Turns", profile.turns), ("Script of the input's letters", profile.scripts)]
    if profile.languages:
        distributions.insert(0, ("Language of the user turns", profile.languages))
    distributions += [(f"Tag {key}", counts) for key, counts in profile.tags.items()]
    if profile.labels:
        distributions.insert(0, (f"Labels ({profile.label_source}), {profile.label_count} in all", profile.labels))
    facts = (
        f"{profile.rows:,} rows. {profile.distinct_inputs:,} different inputs, {profile.distinct_outputs:,} different "
        f"outputs. {profile.json_outputs:.1%} of the answers are JSON; {profile.schema_rows:,} rows carry a schema, "
        f"{profile.tool_rows:,} offer tools. System prompts: {profile.system_prompts:,}. Tokens by {profile.token_source}."
    )
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Profile of {escape(title)}</title><style>{_STYLE}</style></head><body>",
            f'<h1>Profile of {escape(title)}</h1><p class="facts">{escape(facts)}</p><div class="grid">',
            *(f"<section><h2>{name}</h2>{_histogram(name, values)}</section>" for name, values in lengths),
            "</div>",
            *(f"<h2>{escape(name)}</h2>{_bars(counts, profile.rows)}" for name, counts in distributions),
            "</body></html>\n",
        ]
    )


def _histogram(name: str, lengths: Lengths) -> str:
    """Bars over bins whose width grows by a factor (lengths have long tails); every second edge is written."""
    bins = lengths.histogram
    if not bins:
        return "<p>none</p>"
    most = max(count for _, count in bins)
    step = _WIDTH / len(bins)
    parts = []
    for index, (edge, count) in enumerate(bins):
        height = max((_HEIGHT - 16) * count / most, 1.0 if count else 0.0)  # one row among thousands is seen too
        x = index * step
        parts.append(
            f'<rect x="{x + 1:.1f}" y="{_HEIGHT - height:.1f}" width="{max(1.0, step - 2):.1f}" height="{height:.1f}">'
            f"<title>from {edge:,}: {count:,} rows</title></rect>"
        )
        if index % max(1, len(bins) // 8) == 0:
            parts.append(f'<text x="{x + 1:.1f}" y="{_HEIGHT + 14}">{edge:,}</text>')
    label = f"{name}: median {lengths.p50:,}, 95 % under {lengths.p95:,}, longest {lengths.longest:,}"
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT - 14}" role="img" aria-label="{escape(label)}">'
        f'<text x="0" y="10">{most:,} rows</text>{"".join(parts)}</svg><figcaption>{escape(label)}</figcaption></figure>'
    )


def _bars(counts: dict[str, int], rows: int) -> str:
    shown = list(counts.items())[:40]
    most = max((count for _, count in shown), default=1)
    body = "".join(
        f'<tr><td>{escape(name)}</td><td class="share"><i style="width:{100 * count / most:.1f}%"></i></td>'
        f"<td>{count:,}</td><td>{count / max(1, rows):.1%}</td></tr>"
        for name, count in shown
    )
    more = f"<p>and {len(counts) - len(shown)} more</p>" if len(counts) > len(shown) else ""
    return f"<table><tr><th>value</th><th></th><th>rows</th><th>share</th></tr>{body}</table>{more}"
