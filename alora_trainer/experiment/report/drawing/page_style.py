"""How pages of boards and reports look: light and dark by the reader's setting, narrow screens, and paper."""

from __future__ import annotations

# What a drawing needs, in a page or as a file of its own.
DRAWING = """
:root { color-scheme: light dark; --text: #1f2328; --quiet: #57606a; --line: #e3e6ea; --strong: #8c959f; --ground: #fff;
  --accent: #0072b2; --good: #0a6b3d; --bad: #a63d00; --marked: #eef6fc; }
@media screen and (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --quiet: #a3acb6; --line: #30363d; --strong: #6e7781; --ground: #14171b; --accent: #6cb6ea;
    --good: #5bd69a; --bad: #ff9c66; --marked: #1b2733; }
  svg .row { filter: brightness(1.45) saturate(.9); }
}
svg text { fill: var(--text); font: 10.5px system-ui, "DejaVu Sans", sans-serif; }
svg .quiet { fill: var(--quiet); }
svg .axis { stroke: var(--strong); }
svg .grid { stroke: var(--line); }
svg .share { stroke: var(--strong); stroke-dasharray: 3 3; }
svg .leader { fill: none; stroke-width: .7; stroke-opacity: .6; }
svg .zero { stroke: var(--strong); }
"""

STYLE = (
    DRAWING
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 15px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 25px; margin: 0 0 4px; }
h2 { font-size: 20px; margin: 40px 0 6px; padding-top: 14px; border-top: 2px solid var(--accent); }
h3 { font-size: 16px; margin: 26px 0 6px; }
p, li { max-width: 80ch; }
a { color: var(--accent); }
.note, figcaption { color: var(--quiet); font-size: 13.5px; }
.warn { border-left: 4px solid var(--bad); padding-left: 10px; }
.boards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 0 36px; }
.boards > section { min-width: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; margin: 8px 0; }
th, td { padding: 4px 9px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; white-space: normal; min-width: 6.5rem; color: var(--quiet); font-weight: 600;
  border-bottom: 1.5px solid var(--strong); }
th.text, td.text { text-align: left; }
th button { all: unset; cursor: pointer; }
th button:focus-visible, .point:focus-visible, .tools button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\25B2"; font-size: 9px; }
th[aria-sort=descending] button::after { content: " \\25BC"; font-size: 9px; }
tr.reference td { background: var(--marked); }
.better { color: var(--good); font-weight: 700; }
.worse { color: var(--bad); font-weight: 700; }
figure { margin: 8px 0 0; max-width: 640px; position: relative; }
svg { width: 100%; height: auto; display: block; touch-action: pan-y; }
svg .point { cursor: pointer; }
html:not(.js) .tools { display: none; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 4px 22px; }
.figures > figure { max-width: 720px; min-width: 0; }
td:first-child, th:first-child { text-align: left; }
td.best { font-weight: 700; }
.verdict { border-left: 4px solid var(--accent); padding: 2px 14px; background: var(--marked); }
.verdict p { margin: 8px 0; max-width: 90ch; }
nav a { margin-right: 14px; }
.tools { display: flex; flex-wrap: wrap; gap: 6px 12px; align-items: center; font-size: 13.5px; margin: 6px 0; }
.tools label { display: flex; gap: 5px; align-items: center; max-width: 100%; }
.tools select { min-width: 0; flex: 1; }
.tools select, .tools button { font: inherit; color: var(--text); background: var(--ground); border: 1px solid var(--strong);
  border-radius: 4px; padding: 2px 7px; max-width: 100%; }
.methods { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 13.5px; border: 1px solid var(--line); border-radius: 6px;
  padding: 6px 12px; position: sticky; top: 0; background: var(--ground); z-index: 1; max-height: 40vh; overflow-y: auto; }
.methods label { white-space: nowrap; }
svg.swatch { display: inline-block; width: 15px; height: 15px; vertical-align: -2px; }
.tip { position: absolute; pointer-events: none; background: var(--ground); color: var(--text); border: 1px solid var(--strong);
  border-radius: 5px; padding: 5px 9px; font-size: 12.5px; line-height: 1.4; max-width: 260px; white-space: pre-line;
  box-shadow: 0 2px 8px #0004; }
[hidden] { display: none !important; }
dl { font-size: 13.5px; }
dt { font-weight: 600; }
dd { margin: 0 0 6px 0; color: var(--quiet); max-width: 90ch; }
@media (max-width: 560px) {
  svg text { font-size: 11.5px; }
  main { padding: 14px 10px 40px; } h1 { font-size: 21px; } h2 { font-size: 18px; }
  th, td { padding: 4px 6px; } .methods { position: static; max-height: none; } }
@media print {
  @page { size: A4 landscape; margin: 11mm; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  .tools, .methods, nav, .tip { display: none !important; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; width: 100%; }
  th, thead th, td { padding: 2px 4px; white-space: normal; min-width: 0; overflow-wrap: break-word; }
  th:first-child, td:first-child { white-space: nowrap; }
  thead { display: table-header-group; }
  th button { display: contents; }
  tr, figure, .verdict { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .figures { grid-template-columns: 1fr 1fr; }
  p, li, dd { max-width: none; }
}
"""
)
# In the head, so that what needs the script is there before anything is drawn, and nothing jumps.
HEAD_SCRIPT = 'document.documentElement.classList.add("js")'
