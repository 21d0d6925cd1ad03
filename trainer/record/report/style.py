"""What the page of a report looks like: light or dark as the reader's system is, and on paper."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5b6670; --paper: #fff; --card: #f4f6f8;
  --line: #dde2e7; --accent: #1f6fb2; --wrong: #b3261e; --right: #1e7d3a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5af; --paper: #14181c;
  --card: #1f252b; --line: #333c45; --accent: #6db3f2; --wrong: #ff8a80; --right: #7bd492; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.4rem; } h2 { margin: 2.5rem 0 .5rem; font-size: 1.2rem; }
p { margin: .5rem 0; max-width: 48rem; } .soft { color: var(--soft); } a { color: var(--accent); }
.big { font-size: 3.2rem; font-weight: 650; line-height: 1.15; margin: 1rem 0 0; }
.interval { position: relative; height: 1.1rem; margin: .8rem 0 .2rem; background: var(--card);
  border-radius: .3rem; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.interval i { position: absolute; top: 0; bottom: 0; background: var(--accent); }
.interval .range { opacity: .4; border-radius: .3rem; } .interval .point { width: 3px; margin-left: -1px; }
.ends { display: flex; justify-content: space-between; font-size: .8rem; color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .7rem;
  margin: 1.2rem 0; }
.card { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; break-inside: avoid; }
.card b { display: block; font-size: 1.3rem; } .card span { font-size: .85rem; color: var(--soft); }
.scroll { overflow-x: auto; max-height: 42rem; overflow-y: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; } thead th { position: sticky; top: 0; background: var(--paper); }
.scroll th, .scroll td { overflow-wrap: normal; } th.name { font-weight: 400; min-width: 8rem;
  overflow-wrap: anywhere !important; } .n { text-align: right; }
.mean th, .mean td { color: var(--soft); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.6rem, 1fr)); gap: .9rem; }
.pictures figure { margin: 0; font-size: .85rem; line-height: 1.35; break-inside: avoid; }
.pictures img { display: block; width: 128px; height: 128px; object-fit: contain; border-radius: .3rem;
  background: var(--card); }
.pictures small { color: var(--soft); } .wrong { color: var(--wrong); } .right { color: var(--right); }
img.chart { display: block; max-width: 100%; height: auto; margin: .8rem 0; padding: .5rem; background: #fff;
  border-radius: .4rem; break-inside: avoid; }
details { margin: .5rem 0; } summary { cursor: pointer; }
.note { border-left: 4px solid var(--accent); background: var(--card); padding: .5rem .8rem; }
@media (max-width: 32rem) { table { font-size: .8rem; } th, td { padding-right: .5rem; }
  th.name { min-width: 4.5rem; } }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } .scroll { max-height: none;
  overflow: visible; } h2 { break-after: avoid; } }
"""
