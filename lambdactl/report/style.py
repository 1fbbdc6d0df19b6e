"""The page's stylesheet: system fonts, light and dark by the reader's own setting, one column on a narrow screen.

Curves use the colours of Okabe and Ito, which people with any colour vision can tell apart.
"""

CSS = """
:root { --bg: #fff; --fg: #1b1f24; --soft: #59636e; --line: #d5dae0; --card: #f6f8fa; --link: #0b5cad;
  --pass: #1a7f37; --warn: #9a6700; --fail: #c02026; --none: #59636e;
  --c0: #0072b2; --c1: #d55e00; --c2: #00805c; --c3: #a8508a;
  --h0: #d6ecf8; --h1: #a9d3ea; --h2: #f3c99a; --h3: #e58a4e; --h4: #b9371f; --hot: #fff; --cold: #1b1f24; }
@media (prefers-color-scheme: dark) { :root { --bg: #14181d; --fg: #e6eaef; --soft: #9aa5b1; --line: #333b45;
  --card: #1c2229; --link: #6cb6ff; --pass: #4ac26b; --warn: #d9a21b; --fail: #ff7b72; --none: #9aa5b1;
  --c0: #56b4e9; --c1: #f09342; --c2: #2ec495; --c3: #dd8fc1;
  --h0: #17405a; --h1: #1f5f86; --h2: #7a4a17; --h3: #b05f22; --h4: #e2573c; --hot: #fff; --cold: #e6eaef; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 20px 64px; background: var(--bg); color: var(--fg);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.15rem; font-weight: 600; color: var(--soft); margin: 0 0 12px; }
h2 { font-size: 1.2rem; margin: 40px 0 12px; }
.verdict { border-left: 6px solid var(--none); background: var(--card); padding: 16px 20px; border-radius: 6px;
  font-size: 1.25rem; line-height: 1.4; margin: 0; }
.verdict.pass { border-color: var(--pass); } .verdict.warn { border-color: var(--warn); }
.verdict.fail { border-color: var(--fail); }
.sub { color: var(--soft); margin: 10px 0 0; font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; } td.n, th.n { text-align: right; white-space: nowrap; }
.doctor td:first-child { white-space: nowrap; }
.badge { font-weight: 700; white-space: nowrap; }
.badge.pass { color: var(--pass); } .badge.warn { color: var(--warn); }
.badge.fail { color: var(--fail); } .badge.none { color: var(--none); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 24px; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; margin-bottom: 4px; }
svg { display: block; width: 100%; height: auto; font: 13px system-ui, "Liberation Sans", sans-serif; }
.grid { stroke: var(--line); } .tick, .axis { fill: var(--soft); }
.curve { fill: none; stroke-width: 2.2; } .bound { stroke-dasharray: 6 5; stroke-width: 1.5; opacity: .8; }
.s0 { stroke: var(--c0); --c: var(--c0); } .s1 { stroke: var(--c1); --c: var(--c1); }
.s2 { stroke: var(--c2); --c: var(--c2); } .s3 { stroke: var(--c3); --c: var(--c3); }
.dot { fill: var(--c); stroke: none; }
.legend { list-style: none; margin: 4px 0 0; padding: 0; font-size: .88rem; }
.legend li::before { content: ""; display: inline-block; width: 18px; height: 4px; border-radius: 2px;
  background: var(--c); margin-right: 8px; vertical-align: middle; }
.h0 { fill: var(--h0); } .h1 { fill: var(--h1); } .h2 { fill: var(--h2); } .h3 { fill: var(--h3); }
.h4 { fill: var(--h4); }
rect.none { fill: none; stroke: var(--line); stroke-dasharray: 2 3; }
text.value { fill: var(--cold); } text.value.h4 { fill: var(--hot); }
.key { display: flex; flex-wrap: wrap; gap: 6px 16px; font-size: .88rem; color: var(--soft); margin: 10px 0 0; }
.key svg { width: 14px; height: 14px; display: inline-block; vertical-align: -2px; margin-right: 5px; }
code, pre { font: .84rem/1.5 ui-monospace, "SF Mono", Menlo, "Liberation Mono", monospace; }
pre { background: var(--card); padding: 10px 14px; border-radius: 6px; white-space: pre-wrap; margin: 6px 0 16px; }
ul { padding-left: 1.2rem; } summary { cursor: pointer; color: var(--link); }
@media (max-width: 600px) { body { padding: 16px 14px 48px; font-size: 15px; }
  .verdict { font-size: 1.08rem; padding: 12px 14px; }
  th, td { padding-right: 10px; font-size: .84rem; } svg { font-size: 16px; } .heat { font-size: 12px; }
  .steps thead { display: none; } .steps tr { display: grid; grid-template-columns: 1fr 1fr; padding: 8px 0;
    border-bottom: 1px solid var(--line); } .steps td { border: 0; padding: 1px 0; text-align: left; }
  .steps td:first-child { grid-column: 1 / -1; font-weight: 600; }
  .steps td.n::before { content: attr(data-label) " "; color: var(--soft); }
  .facts td:first-child { width: 34%; } }
@media print { body { max-width: none; } details > * { display: block; } }
"""
