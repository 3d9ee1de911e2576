"""Makes one self-contained HTML page of a file of records."""
import dataclasses
import html
import json
from typing import Callable

import charts
import records

MEASURED, SIMULATED, PREDICTED = "measured", "simulated", "predicted"
# Tables of more rows are folded; few rows of more columns have their fields below each other.
LONG_TABLE, WIDE_TABLE = 24, 9


@dataclasses.dataclass
class Part:
    """A section of the page."""
    title: str
    kind: str
    #: what is to be seen, as HTML
    text: str
    draw: Callable = None


RUN = "Benchmarks/report/report"
P2P_TEXT = """Two processes, one on each of two cores. <b>Time ends when the receiver knows that everything is
there.</b> Below: ours divided by the limit of the same run; 1 is the machine's own speed. """
PARTS = {
    "shm": Part("Shared memory", MEASURED, P2P_TEXT + """Memory of the engine, which the writer has mapped; the limit
is memcpy.""", charts.point_to_point("shm")),
    "caller-memory": Part("Shared memory, the application's memory", MEASURED, P2P_TEXT + """Ordinary memory on both
sides; the limit is process_vm_writev.""", charts.point_to_point("caller-memory")),
    "tcp": Part("TCP over loopback", MEASURED, P2P_TEXT + """The limit is a plain TCP socket. Loopback has no ceiling
of its own, and differs by half between runs.""", charts.point_to_point("tcp")),
    "idle": Part("Idle engines", MEASURED, """What two processes with adaptive engines use while nothing is in
flight.""", charts.idle),
    "digest": Part("Digest", MEASURED, """The digest of a transfer on one core, beside memcpy of the same bytes.""",
        charts.digest),
    "kv": Part("KV caches", MEASURED, """The cache of one request from a prefiller's process to a decoder's, in pages
in random order. Throughput: all layers are computed at once, until the decoder may begin. After the last layer: all
others have arrived. The row <code>protocol</code> is a request without data.""", charts.kv),
    "kv-pipeline": Part("KV pipeline", MEASURED, """<b>One</b> request between two processes, after one to warm up;
no median. The model is a pause for each layer (20 000 tokens a second), the rest is real: <i>computes</i> is the
prefiller's clock, <i>waits</i> and <i>is written</i> are the prefiller's flight recorder (<code>te trace</code>),
<i>has counted</i> is the decoder's clock. Over TCP a write has ended when it has been acknowledged, so the decoder
may have counted it before.""", charts.kv_pipeline),
    "kv-table3": Part("KV layers on NICs of 200 Gbit/s", SIMULATED, """The shapes of the paper's table 3 in virtual
time: four GPUs with two NICs each. Nothing of it ran on a NIC; the paper's figures were measured on EFA.""",
        charts.table3),
    "weights": Part("Weight updates", MEASURED, """A model from trainers' processes to receivers' processes over
shared memory; medians. The limit of BF16 is memcpy, that of FP8 the conversion, each measured beside the update.
Phases are drawn one after the other.""", charts.weights),
    "weights-prediction": Part("Weight pipeline", PREDICTED, """<b>A cost model's prediction, not a run:</b> Kimi-K2
from 256 trainers to 128 receivers, four of the trainers. Slices with gaps of less than 1 % of the time between them
are one bar, which is the paler, the less of it is busy; the second picture has every slice of one trainer's first 20
ms. <i>rest</i> is the network, as far as nothing hides it; <i>wait</i> is for other ranks.""",
        charts.weights_prediction),
    "moe": Part("Mixture of experts", MEASURED, """Dispatch and combine between processes over shared memory: 7168
values, 256 experts, 8 for each token, FP8 in, BF16 out, sums at the sender. With more ranks than cores, ranks wait
for cores. Below: what a step has to copy in a second, divided by memcpy in all ranks.""", charts.moe),
    "moe-model": Part("Mixture of experts on two NICs", SIMULATED, """<b>A formula, not a run:</b> the paper's kernel
times, posting times and line rates, put together in the order of this library and in that of the paper. The two
other bars were measured by the paper's authors on GPUs, DeepEP's on ConnectX-7 in both rows.""", charts.moe_model),
    "peers": Part("Peers", MEASURED, """Other libraries in turns with this one. Rows of writes, pages, KV caches and
MoE steps are also in the pictures above, where ours is from another run: for ratios take this table."""),
}

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2024; --soft: #5b636d; --line: #d8dce1; --tint: #f3f5f7;
  --link: #2368a8 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --ink: #e4e7ea; --soft: #a2abb5; --line: #3a4148; --tint: #1e2327; --link: #7fb6ea }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.7rem; margin: 0 0 .3rem }
h2 { font-size: 1.25rem; margin: 3rem 0 .4rem; padding-top: .9rem; border-top: 1px solid var(--line) }
h3 { font-size: .95rem; margin: 1.4rem 0 .3rem }
p { margin: .4rem 0 .8rem; max-width: 52rem }
a { color: var(--link) }
svg { display: block; width: 100%; height: auto }
code, pre { font: 12.5px/1.5 ui-monospace, monospace }
pre { margin: .4rem 0; padding: .5rem .8rem; overflow-x: auto; background: var(--tint); border-radius: 4px }
summary { cursor: pointer; margin: .6rem 0; color: var(--link) }
.tables { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 0 2.5rem }
.scroll { overflow-x: auto; max-width: 100%; margin: .6rem 0 1rem }
table { border-collapse: collapse; font-size: 12.5px; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid var(--line) }
td { white-space: nowrap }
th { vertical-align: bottom; color: var(--soft); font-weight: 600 }
.beside { display: flex; flex-wrap: wrap; gap: 0 4rem }
.beside h2 { border: 0; margin-top: 1rem }
.number { text-align: right }
.kind { font-size: .7rem; font-weight: 600; vertical-align: .2em; margin-left: .5rem; padding: .15rem .5rem;
  border: 1px solid currentColor; border-radius: 9px }
.measured { color: #2f8f66 } .simulated, .predicted { color: #c4692a }
.absent { padding: .6rem .8rem; border-left: 3px solid var(--line); background: var(--tint) }
.failed { border-color: #d1495b }
.soft { color: var(--soft) }
"""


def shown(value):
    """A value of a row, with at most four decimals."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(round(value, 4) if isinstance(value, float) else value)


def flat(row):
    """Fields, those of objects within by `outer.inner`."""
    for key, value in row.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", inside) for inner, inside in value.items())
        else:
            yield key, value


def table(rows):
    """Rows with the same columns."""
    columns = [key for key, _ in rows[0]]
    if len(columns) > WIDE_TABLE and len(rows) <= 3:
        return fields(rows)
    is_number = [all(not isinstance(row[index][1], str) for row in rows) for index in range(len(columns))]
    style = [' class="number"' if right else "" for right in is_number]
    heads = (f"<th{kind}>{html.escape(name).replace('_', '_<wbr>')}</th>" for kind, name in zip(style, columns))
    lines = ["<tr>" + "".join(heads) + "</tr>"]
    for row in rows:
        cells = (f"<td{kind}>{html.escape(shown(value))}</td>" for kind, (_, value) in zip(style, row))
        lines.append("<tr>" + "".join(cells) + "</tr>")
    text = '<div class="scroll"><table>' + "\n".join(lines) + "</table></div>"
    if len(rows) <= LONG_TABLE:
        return text
    return f"<details><summary>{len(rows)} rows: {html.escape(', '.join(columns))}</summary>{text}</details>"


def fields(rows):
    """Few rows with many fields: a line for each field."""
    lines = []
    for line in zip(*rows):
        cells = "".join(f'<td class="number">{html.escape(shown(value))}</td>' for _, value in line)
        lines.append(f"<tr><th>{html.escape(line[0][0])}</th>{cells}</tr>")
    return '<div class="scroll"><table>' + "\n".join(lines) + "</table></div>"


def tables(rows):
    """All rows, those with the same fields in one table."""
    groups = {}
    for row in rows:
        flattened = list(flat(row))
        groups.setdefault(tuple(key for key, _ in flattened), []).append(flattened)
    return '<div class="tables">' + "\n".join(table(group) for group in groups.values()) + "</div>"


def state(section):
    if section.failures:
        return "failed"
    return f"{len(section.rows)} rows" if section.rows else "not run"


def body(name, part, section, peers):
    """A section's text, pictures, commands and numbers."""
    kind = f'<span class="kind {part.kind}">{part.kind}</span>'
    parts = [f'<section id="{name}"><h2>{html.escape(part.title)}{kind}</h2>', f"<p>{part.text}</p>"]
    for command, reason in section.failures:
        parts.append(f'<p class="absent failed"><b>failed</b>: <code>{html.escape(command)}</code><br>'
                     f"{html.escape(reason)}</p>")
    if section.rows:
        for title, picture in part.draw(section.rows, peers) if part.draw else []:
            parts.append(f"<h3>{html.escape(title)}</h3>\n{picture}")
        parts.append("<pre>" + "\n".join(map(html.escape, section.commands)) + "</pre>")
        parts.append(tables(section.rows))
    elif not section.failures:
        how = f"{RUN} --peers FILE" if name == "peers" else f"{RUN} --only {name}"
        parts.append(f'<p class="absent"><b>not run</b>: <code>{how}</code> does it.</p>')
    return "\n".join(parts) + "\n</section>"


def contents(sections):
    lines = ["<tr><th>section</th><th>kind</th><th>state</th></tr>"]
    for name, part in PARTS.items():
        lines.append(f'<tr><td><a href="#{name}">{html.escape(part.title)}</a></td><td>{part.kind}</td>'
                     f"<td>{state(sections[name])}</td></tr>")
    return '<div class="scroll"><table>' + "\n".join(lines) + "</table></div>"


def render(path):
    """The page as text."""
    machine, sections = records.read(path, PARTS)
    peers = sections["peers"].rows
    facts = "\n".join(f"<tr><th>{html.escape(key)}</th><td>{html.escape(shown(value))}</td></tr>"
                      for key, value in machine.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TransferEngine for Swift: benchmarks</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<h1>TransferEngine for Swift: benchmarks</h1>
<p class="soft">Figures are of this machine and of this day. What is <span class="measured">measured</span> ran here;
what is <span class="simulated">simulated</span> or <span class="predicted">predicted</span> ran on no NIC and on no
GPU.</p>
<div class="beside">
<section id="contents"><h2>Contents</h2>{contents(sections)}</section>
<section id="machine"><h2>Machine</h2><div class="scroll"><table>
{facts}
</table></div></section>
</div>
{chr(10).join(body(name, part, sections[name], peers) for name, part in PARTS.items())}
</body>
</html>
"""
