"""The report's look: one style sheet, light and dark by the reader's setting, readable on a phone."""
# ruff: noqa: E501  (a style sheet, not prose)

CSS = """
:root { color-scheme: light dark; --bg:#fbfbfa; --card:#ffffff; --ink:#1d2129; --soft:#5d6675; --rule:#e4e6ea;
  --accent:#3459d6; --tint:#eef2ff; --good:#14884a; --good-tint:#e3f6ea; --wrong:#c9ced6; --paper:#ffffff;
  --c0:#3459d6; --c1:#d9730d; --c2:#8a3fd1; --c3:#0f8a8a; --c4:#c2347a; --c5:#6b7280; }
@media (prefers-color-scheme: dark) { :root { --bg:#14161b; --card:#1c1f26; --ink:#e8eaee; --soft:#9aa3b2;
  --rule:#2d323c; --accent:#8aa6ff; --tint:#232b45; --good:#4cc38a; --good-tint:#16352a; --wrong:#444b57;
  --paper:#ffffff; --c0:#8aa6ff; --c1:#ffa657; --c2:#c792ff; --c3:#4fd1c5; --c4:#ff8fc0; --c5:#a3abb8; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--bg); color:var(--ink); line-height:1.55;
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; }
main { max-width:1080px; margin:0 auto; padding:40px 24px 72px; }
h1 { font-size:34px; line-height:1.15; letter-spacing:-.02em; margin:0 0 8px; }
h2 { font-size:23px; letter-spacing:-.01em; margin:56px 0 6px; }
h3 { font-size:16px; margin:28px 0 8px; } h3 .size { font-weight:400; color:var(--soft); }
p { margin:6px 0 14px; max-width:72ch; }
.soft, figcaption, .meta { color:var(--soft); }
.meta { font-size:14px; margin:0; }
nav { display:flex; flex-wrap:wrap; gap:6px 18px; margin:20px 0 0; padding:12px 0; border-block:1px solid var(--rule);
  font-size:14px; }
nav a { color:var(--accent); text-decoration:none; } nav a:hover { text-decoration:underline; }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(215px,1fr)); gap:14px; margin:26px 0 0; }
.card { background:var(--card); border:1px solid var(--rule); border-radius:14px; padding:16px 18px; }
.card b { display:block; font-size:31px; line-height:1.15; letter-spacing:-.02em; font-variant-numeric:tabular-nums; }
.card .what { font-size:13.5px; color:var(--soft); margin:0 0 4px; } .card .than { font-size:13.5px; margin:4px 0 0; }
.scroll { overflow-x:auto; background:var(--card); border:1px solid var(--rule); border-radius:14px; margin:8px 0 6px; }
table { border-collapse:collapse; width:100%; font-size:14.5px; font-variant-numeric:tabular-nums; }
th, td { padding:9px 12px; text-align:right; white-space:nowrap; }
th:first-child, td:first-child { text-align:left; position:sticky; left:0; background:var(--card); }
thead th { font-weight:600; color:var(--soft); font-size:13px; } thead tr + tr th { padding-top:0; }
thead .group { text-align:left; color:var(--ink); border-left:1px solid var(--rule); } .left { border-left:1px solid var(--rule); }
tbody tr { border-top:1px solid var(--rule); } td.best { font-weight:700; color:var(--good); }
tr.chance td { color:var(--soft); } td.words, th.words { text-align:left; white-space:normal; }
.tabs > input { position:absolute; opacity:0; pointer-events:none; }
.tabs > label { display:inline-block; margin:10px 8px 6px 0; padding:6px 15px; border:1px solid var(--rule);
  border-radius:999px; background:var(--card); cursor:pointer; font-size:14px; }
.tabs > section { display:none; }
.query { display:grid; grid-template-columns:200px 1fr; gap:6px 20px; align-items:center; padding:14px 0;
  border-top:1px solid var(--rule); }
.query .ask { font-size:17px; font-weight:600; line-height:1.3; overflow-wrap:anywhere; }
.query .ask small { display:block; font-size:13px; font-weight:400; color:var(--soft); margin-top:3px; }
.hits { display:grid; grid-template-columns:repeat(5,minmax(0,1fr)); gap:10px; }
.hit { text-align:center; font-size:12.5px; line-height:1.3; color:var(--soft); min-width:0; }
.hit span.word { display:block; overflow:hidden; text-overflow:ellipsis; white-space:nowrap; }
.tile { position:relative; background:var(--paper); border:3px solid var(--wrong); border-radius:12px; padding:6px;
  aspect-ratio:1; display:flex; align-items:center; justify-content:center; margin-bottom:4px; }
.sheet { max-width:100%; border-radius:6px; }
.tile img { max-width:100%; max-height:100%; display:block; }
.right .tile { border-color:var(--good); } .right .word { color:var(--good); font-weight:600; }
.tile .mark { position:absolute; right:-7px; top:-9px; width:22px; height:22px; border-radius:50%; color:#fff;
  background:var(--good); font:700 13px/22px system-ui,sans-serif; }
@media (prefers-color-scheme: dark) { .tile .mark { color:#06170e; } }
.guesses { display:grid; grid-template-columns:repeat(auto-fill,minmax(310px,1fr)); gap:14px; }
.guess { display:grid; grid-template-columns:96px 1fr; gap:14px; align-items:center; background:var(--card);
  border:1px solid var(--rule); border-radius:14px; padding:14px; }
.guess .tile { border-width:1px; border-color:var(--rule); margin:0; }
.guess .label { font-size:13px; color:var(--soft); margin:0 0 6px; line-height:1.3; } .guess .label b { color:var(--ink); }
ul.bars { list-style:none; margin:0; padding:0; font-size:13.5px; }
ul.bars li { display:grid; grid-template-columns:minmax(0,1.25fr) 1fr auto; gap:8px; align-items:center; padding:2px 0; }
ul.bars .name { overflow:hidden; text-overflow:ellipsis; white-space:nowrap; }
ul.bars .track { background:var(--tint); border-radius:5px; height:9px; overflow:hidden; display:block; }
ul.bars .fill { display:block; height:100%; background:var(--wrong); border-radius:5px; }
ul.bars .num { color:var(--soft); font-variant-numeric:tabular-nums; min-width:4.2em; text-align:right; }
.guess ul.bars li { position:relative; grid-template-columns:minmax(0,1fr) auto; padding:2px 8px; margin:2px 0; }
.guess ul.bars .track { position:absolute; inset:0; height:auto; z-index:0; } .guess ul.bars .fill { opacity:.55; }
.guess ul.bars .name, .guess ul.bars .num { position:relative; z-index:1; }
.guess ul.bars li.right .fill { opacity:.3; } .guess ul.bars .num { color:var(--ink); }
ul.bars li.right .name { color:var(--good); font-weight:600; } ul.bars li.right .fill { background:var(--good); }
.wide ul.bars { max-width:760px; font-size:14.5px; } .wide ul.bars li { grid-template-columns:minmax(0,230px) 1fr 86px; } .wide ul.bars .fill { background:var(--accent); }
.charts { display:grid; grid-template-columns:repeat(auto-fill,minmax(310px,1fr)); gap:14px; }
figure { margin:0; background:var(--card); border:1px solid var(--rule); border-radius:14px; padding:12px 12px 6px; }
figcaption { font-size:13.5px; padding:0 4px 2px; } svg { width:100%; height:auto; display:block; }
svg text { font:10.5px system-ui,sans-serif; fill:var(--soft); } .grid { stroke:var(--rule); stroke-width:1; }
.line { fill:none; stroke-width:2; stroke-linejoin:round; } .faint { opacity:.25; stroke-width:1; }
.legend { font-size:14px; margin:4px 0 10px; } .key { margin-right:18px; white-space:nowrap; }
.key i { display:inline-block; width:14px; height:4px; border-radius:2px; margin-right:6px; vertical-align:middle; }
.line.c0{stroke:var(--c0)} .line.c1{stroke:var(--c1)} .line.c2{stroke:var(--c2)} .line.c3{stroke:var(--c3)}
.line.c4{stroke:var(--c4)} .line.c5{stroke:var(--c5)} .dot.c0{fill:var(--c0)} .dot.c1{fill:var(--c1)}
.dot.c2{fill:var(--c2)} .dot.c3{fill:var(--c3)} .dot.c4{fill:var(--c4)} .dot.c5{fill:var(--c5)}
i.c0{background:var(--c0)} i.c1{background:var(--c1)} i.c2{background:var(--c2)} i.c3{background:var(--c3)}
i.c4{background:var(--c4)} i.c5{background:var(--c5)}
details { background:var(--card); border:1px solid var(--rule); border-radius:14px; padding:10px 16px; margin:8px 0; }
summary { cursor:pointer; font-weight:600; } pre { overflow-x:auto; font:12.5px/1.5 ui-monospace,Menlo,Consolas,monospace; }
footer { margin-top:56px; padding-top:14px; border-top:1px solid var(--rule); font-size:13.5px; color:var(--soft); }
@media (max-width:640px) { main { padding:24px 16px 48px; } h1 { font-size:27px; } h2 { margin-top:44px; }
  .query { grid-template-columns:1fr; } .hits { gap:6px; } .hit { font-size:11px; } .tile { padding:3px; border-width:2px; }
  .guesses { grid-template-columns:1fr; } th, td { padding:8px 9px; } .cards { grid-template-columns:1fr 1fr; }
  .card b { font-size:25px; } .hit .score { display:none; } }
@media print { .tabs > section { display:block !important; } nav, .tabs > label { display:none; } }
"""
