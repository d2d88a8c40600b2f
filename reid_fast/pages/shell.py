"""What every page has: the head, the colours of day and night, tables that scroll on a narrow screen."""

from __future__ import annotations

from reid_fast.pages.text import shown

# Nothing is loaded, nothing runs: whatever a mistake let through, the browser would refuse it.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1a1c20; --muted: #5b616b; --line: #d5d9df; --panel: #f4f5f7;
  --right: #14803c; --wrong: #c62828; --accent: #1f5fbf;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171b; --ink: #e8eaed; --muted: #9aa2ad; --line: #363b43; --panel: #1e2127;
    --right: #4cc274; --wrong: #ff7a70; --accent: #7fb0ff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 80rem;
  background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
}
h1 { margin: 0 0 .5rem; font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2rem 0 .5rem; font-size: 1.2rem; line-height: 1.3; overflow-wrap: anywhere; }
p { max-width: 46rem; overflow-wrap: anywhere; }
code { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
.muted { color: var(--muted); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; }
td.number, th.number { text-align: right; }
img, svg { max-width: 100%; }
"""


def page(title: str, body: str, style: str = "") -> str:
    """A whole page.

    Args:
        title: its title and heading, as text.
        body: what follows the heading, as HTML; what comes from outside has gone through `shown`.
        style: rules of its own, behind those of every page. Colours are `var(--ink)`, `--paper`, `--muted`, `--line`,
            `--panel`, `--accent`, `--right`, `--wrong`; a table that may be wide stands in a `div` of class `scroll`.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{shown(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<h1>{shown(title)}</h1>
{body}
</body>
</html>
"""
