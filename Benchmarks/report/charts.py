"""The pictures: each takes the rows of a section (and the peers' rows) and returns [(title, SVG)]."""
from matplotlib.patches import Patch

from drawing import (BLUE, BROWN, GREEN, GREY, INK, LINE, ORANGE, PEER_STYLES, PURPLE, RED, Panel, Series, binary,
                     curves, figure, horizontal_bars, legend_above, plain, svg)

# The names of tests, and those that the programs with the peers give them.
P2P_TESTS = {"write": "write", "write-hot": "write, same bytes", "paged": "1024 pages of one size"}
PEER_TESTS = {"write": "write", "write-hot": "write-hot", "pages": "paged"}
PEER_SECTIONS = {"shm": "shm", "posix": "shm", "cma": "caller-memory", "tcp": "tcp"}


def unique(values):
    return list(dict.fromkeys(values))


def points(rows, x, y):
    return [(row.number(x), row.number(y)) for row in rows]


def peer_series(rows, x, y):
    """A curve for each peer."""
    names = unique(f"{row['peer']} {row['transport']}" for row in rows)
    return [Series(name, points([row for row in rows if f"{row['peer']} {row['transport']}" == name], x, y), colour,
                   marker, "--")
            for name, (colour, marker) in zip(names, PEER_STYLES)]


def point_to_point(section):
    """Throughput by size and latency of a provider, beside the machine's limits and peers."""
    def draw(rows, peers):
        # A peer that could not be measured has a reason instead of a test.
        peers = [row for row in peers if "test" in row and PEER_SECTIONS.get(row["transport"]) == section]
        panels = []
        for test, title in P2P_TESTS.items():
            mine = [row for row in rows if row["test"] == test]
            if not mine:
                continue
            theirs = [row for row in peers if PEER_TESTS.get(row["test"]) == test]
            limits = [row for row in mine if row.get("limit") is not None]
            series = [Series("ours", points(mine, "size", "gbps"), BLUE)]
            for name in unique(row["limit_is"] for row in limits):
                series.append(Series(f"limit: {name}", points([row for row in limits if row["limit_is"] == name],
                                                              "size", "limit"), ORANGE, "s"))
            panels.append(Panel(title, "GB/s", series + peer_series(theirs, "size", "theirs"), "ours / limit",
                                [Series("ours / limit", points(limits, "size", "ratio"), BLUE)]))
        pictures = []
        if panels:
            pictures.append(("Throughput by size", svg(curves(panels, "bytes", binary), "Throughput by size")))
        bars = [(latency_name(row), row.number("lat_us_p50"), BLUE) for row in rows if "lat_us_p50" in row]
        bars += [(f"limit: {row['limit_is']}", row.number("limit"), ORANGE) for row in rows
                 if row["test"] == "pingpong" and row.get("limit") is not None]
        bars += [(f"{row['peer']}: {row['test']}", row.number("theirs"), PURPLE) for row in peers
                 if row["unit"] == "us"]
        if bars:
            drawn, axes = figure(1, 1, 0.8 + 0.27 * len(bars))
            horizontal_bars(axes[0][0], bars, "us", is_log=True)
            axes[0][0].set_xlabel("microseconds, median (logarithmic)")
            pictures.append(("Latency of 8 bytes", svg(drawn, "Latency of 8 bytes")))
        return pictures
    return draw


def latency_name(row):
    return "submitting a write" if row["test"] == "submit" else f"ping-pong, half, {row['progress']} progress"


def digest(rows, _):
    panel = Panel("digest on one core", "GB/s", [
        Series("digest", points(rows, "size", "gbps"), BLUE),
        Series("limit: memcpy", points(rows, "size", "memcpy"), ORANGE, "s"),
    ], "digest / memcpy", [Series("ratio", points(rows, "size", "ratio"), BLUE)])
    return [("Digest by size", svg(curves([panel], "bytes", binary), "Digest by size"))]


def idle(rows, _):
    drawn, axes = figure(1, 1, 0.9 + 0.27 * 2 * len(rows))
    bars = []
    for row in rows:
        watched = "no watched word" if row["watchers"] == 0 else f"watched words: {row['watchers']}"
        for side, colour in (("initiator", BLUE), ("target", GREEN)):
            bars.append((f"{row['provider']}, {watched}, {side}", row.number(f"{side}_core_percent"), colour))
    horizontal_bars(axes[0][0], bars, "%")
    allowed = max(row.number("allowed") for row in rows)
    axes[0][0].axvline(allowed, color=RED, linestyle="--", label=f"allowed: {plain(allowed)} %")
    axes[0][0].set_xlim(0, max(1.25 * allowed, axes[0][0].get_xlim()[1]))
    axes[0][0].set_xlabel("% of a core")
    legend_above(drawn, axes[0])
    return [("An idle engine's part of a core", svg(drawn, "An idle engine's part of a core"))]


def kv(rows, peers):
    """Throughput, and the time after the last layer, by the length of the request."""
    rows = [row for row in rows if "gbps" in row]
    peers = [row for row in peers if "their_gbps" in row]
    rates, times = [], []
    for model, transport in unique((row["model"], row["transport"]) for row in rows):
        mine, theirs = ([row for row in side if (row["model"], row["transport"]) == (model, transport)]
                        for side in (rows, peers))
        title = f"{model}, {transport}"
        rates.append(Panel(title, "GB/s", [
            Series("ours", points(mine, "tokens", "gbps"), BLUE),
            Series("plain page writes of the engine", points(mine, "tokens", "raw_gbps"), GREEN, "v"),
            Series("limit: memcpy", points(mine, "tokens", "memcpy_gbps"), ORANGE, "s"),
        ] + peer_series(theirs, "tokens", "their_gbps"), "ratio", [
            Series("ours / memcpy", points(mine, "tokens", "ratio"), ORANGE, "s"),
            Series("ours / plain writes", points(mine, "tokens", "raw_ratio"), GREEN, "v"),
        ]))
        theirs = [row for row in theirs if row.get("their_after_last_layer_us") is not None]
        times.append(Panel(title, "us after the last layer", [
            Series("ours", points(mine, "tokens", "after_last_layer_us"), BLUE),
        ] + peer_series(theirs, "tokens", "their_after_last_layer_us"), is_log=True))
    if not rates:
        return []
    name = "tokens of the request"
    return [("Throughput by length", svg(curves(rates, name, plain), "Throughput by length")),
            ("From the last layer's computation until the decoder may begin",
             svg(curves(times, name, plain), "Time after the last layer"))]


def kv_pipeline(rows, _):
    """Gantt chart: a line for each layer."""
    transports = unique(row["transport"] for row in rows)
    drawn, axes = figure(1, len(transports), 5.2)
    for axis, transport in zip(axes[0], transports):
        layers = sorted((row for row in rows if row["transport"] == transport and "layer" in row),
                        key=lambda row: row.number("layer"))
        at = {name: [row.number(f"{name}_us") / 1000 for row in layers]
              for name in ("computed", "writing", "written", "counted")}
        at["begin"] = [0] + at["computed"][:-1]
        y = [row.number("layer") for row in layers]
        for label, begin, end, colour in (("model computes (a pause)", "begin", "computed", GREY),
                                          ("waits to be written", "computed", "writing", ORANGE),
                                          ("is written", "writing", "written", BLUE)):
            axis.barh(y, [max(0, b - a) for a, b in zip(at[begin], at[end])], left=at[begin], height=0.72,
                      color=colour, label=label)
        axis.plot(at["counted"], y, "|", color=RED, markersize=7, markeredgewidth=2, label="decoder has counted it")
        for row in rows:
            if row["transport"] == transport and "ready_us" in row:
                axis.axvline(row.number("ready_us") / 1000, color=INK, linestyle=":", label="decoder may begin")
        axis.invert_yaxis()
        axis.set_xlim(left=0)
        axis.set_title(transport)
        axis.set_xlabel("milliseconds since the forward pass began")
        axis.set_ylabel("layer")
    legend_above(drawn, axes[0])
    return [("Layers of one request", svg(drawn, "Gantt chart of the layers of one request"))]


def table3(rows, _):
    panel = Panel("one layer of Qwen3-235B, 4 GPUs to 4", "milliseconds", [
        Series("here, simulated: median of the layers", points(rows, "tokens", "layer_p50_ms"), BLUE),
        Series("limit: bytes by the line rate", points(rows, "tokens", "wire_ms"), ORANGE, "s"),
        Series("paper, measured on EFA", points(rows, "tokens", "paper_ms"), PURPLE, "D", "--"),
    ], is_log=True)
    return [("Time of a layer by length", svg(curves([panel], "tokens of the request", plain), "Time of a layer"))]


def weights(rows, _):
    """What an update's phases take, what it moves in a second, and what it would take by gathering and broadcasting."""
    phased = [row for row in rows if "opening_ms" in row]
    broadcast = [row for row in rows if "usual_writing_ms" in row]
    pictures = []
    if phased:
        drawn, axes = figure(1, 2, 1.4 + 0.42 * len(phased), width_ratios=[3, 2])
        names = [row["test"] for row in phased]
        left = [0.0] * len(phased)
        for phase, colour in (("opening", GREY), ("writing", BLUE), ("verifying", GREEN), ("committing", PURPLE)):
            widths = [row.number(f"{phase}_ms") for row in phased]
            axes[0][0].barh(names, widths, left=left, height=0.6, color=colour, label=phase)
            left = [a + b for a, b in zip(left, widths)]
        axes[0][0].set_xlabel("milliseconds since the update began")
        bars = axes[0][1]
        for offset, (label, colour) in enumerate((("writing", BLUE), ("whole update", BROWN),
                                                  ("limit: memcpy, or conversion", ORANGE))):
            values = [row.number("writing_gb_s") if offset == 0 else row.number("update_gb_s") if offset == 1 else
                      row.number("convert_gb_s" if "convert_gb_s" in row else "copy_gb_s") for row in phased]
            places = [y + 0.27 * (offset - 1) for y in range(len(phased))]
            drawn_bars = bars.barh(places, values, height=0.25, color=colour, label=label)
            bars.bar_label(drawn_bars, [plain(value) for value in values], padding=3, color=INK, fontsize=7.5)
        bars.set_yticks(range(len(phased)), names)
        bars.margins(x=0.15)
        bars.set_xlabel("GB/s")
        for axis in axes[0]:
            axis.invert_yaxis()
            axis.grid(False, axis="y")
        legend_above(drawn, axes[0])
        pictures.append(("Phases of an update, and its rate", svg(drawn, "Gantt chart of an update's phases")))
    if broadcast:
        drawn, axes = figure(1, 1, 0.8 + 0.27 * 4 * len(broadcast))
        horizontal_bars(axes[0][0], [
            bar for row in broadcast for bar in (
                (f"{row['test']}: direct, writing", row.number("writing_ms"), BLUE),
                ("direct, whole update", row.number("update_ms"), BLUE),
                ("gather and broadcast, writing", row.number("usual_writing_ms"), GREY),
                ("gather and broadcast, whole update", row.number("usual_update_ms"), GREY))], "ms")
        axes[0][0].set_xlabel("milliseconds")
        pictures.append(("Beside gathering and broadcasting", svg(drawn, "Beside gathering and broadcasting")))
    return pictures


STAGES = {"load": BLUE, "gather": ORANGE, "fuse": BROWN, "quantise": GREEN, "submit": PURPLE, "rest": GREY,
          "wait": LINE}


def weights_prediction(rows, _):
    """Gantt charts: a lane for each stage of some trainers, and the beginning of one; a panel for each policy."""
    whole = [row for row in rows if row.get("part") == "whole"]
    begin = [row for row in rows if row.get("part") == "begin"]
    totals = {row["policy"]: f": {plain(row.number('total_ms'))} ms" for row in rows if "total_ms" in row}
    return [(title, svg(stages(bars, totals), f"Gantt chart. {title}"))
            for title, bars in (("What trainers do when", whole), ("The beginning, slice by slice", begin)) if bars]


def stages(rows, totals):
    policies = unique(row["policy"] for row in rows)
    lanes = len(STAGES) + 1
    trainers = unique(row["trainer"] for row in rows)
    drawn, axes = figure(len(policies), 1, 0.6 + len(policies) * (0.75 + 0.5 * len(trainers)), sharex=True)
    for (axis,), policy in zip(axes, policies):
        for row in rows:
            if row["policy"] != policy:
                continue
            begin, length = row.number("begin_ms"), row.number("end_ms") - row.number("begin_ms")
            y = trainers.index(row["trainer"]) * lanes + list(STAGES).index(row["stage"])
            # Where a bar has gaps that are too short to be seen, it is paler.
            share = row.number("busy_ms") / length if length > 0 else 1
            axis.barh(y, length, left=begin, height=0.9, color=STAGES[row["stage"]], alpha=0.3 + 0.7 * min(1, share))
        axis.set_yticks([lanes * index + (lanes - 2) / 2 for index in range(len(trainers))],
                        [f"trainer {trainer}" for trainer in trainers])
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(lanes * len(trainers) - 0.5, -1)
        axis.grid(False, axis="y")
        axis.set_title({"direct": "direct plan", "full-tensor": "the paper's order"}.get(policy, policy)
                       + totals.get(policy, ""))
    axes[-1][0].set_xlabel("milliseconds since the update began")
    axes[-1][0].set_xlim(left=0)
    drawn.legend(handles=[Patch(color=colour, label=stage) for stage, colour in STAGES.items()],
                 loc="outside upper left", ncols=7)
    return drawn


def moe(rows, peers):
    """Latency by tokens, a panel for each number of ranks."""
    panels = []
    for ep in unique(row["ep"] for row in rows):
        mine = [row for row in rows if row["ep"] == ep]
        series = [Series("dispatch", points(mine, "tokens", "dispatch_us"), BLUE),
                  Series("combine", points(mine, "tokens", "combine_us"), GREEN, "v"),
                  Series("whole step", points(mine, "tokens", "us"), INK, "s")]
        theirs = [row for row in peers if row.get("ep") == ep and isinstance(row.get("us"), dict)]
        names = unique(name for row in theirs for name in row["us"] if not name.startswith("te"))
        series += [Series(f"{name}, step", [(row.number("tokens"), row["us"].get(name)) for row in theirs], colour,
                          marker, "--") for name, (colour, marker) in zip(names, PEER_STYLES)]
        panels.append(Panel(f"EP {ep}", "microseconds", series, "copied / memcpy",
                            [Series("copied / memcpy", points(mine, "tokens", "ratio"), BLUE)], is_log=True))
    return [("Dispatch and combine by tokens of a rank",
             svg(curves(panels, "tokens of each rank", plain), "MoE latency by tokens"))]


def moe_model(rows, _):
    """Bars: ours by the model, the paper's algorithm by the model, and what was measured elsewhere."""
    nics, kinds = unique(row["nic"] for row in rows), unique(row["what"] for row in rows)
    titles = {"cx7": "ConnectX-7", "efa": "EFA"}
    drawn, axes = figure(len(nics), len(kinds), 0.6 + 2.3 * len(nics), sharex="col", sharey="row")
    bars = (("ours, model", "ours_model_us", BLUE), ("paper's algorithm, model", "paper_model_us", ORANGE),
            ("paper, measured", "paper_us", PURPLE), ("DeepEP on ConnectX-7, measured", "deepep_cx7_us", GREY))
    for line, nic in zip(axes, nics):
        for axis, kind in zip(line, kinds):
            mine = [row for row in rows if (row["nic"], row["what"]) == (nic, kind)]
            for offset, (label, field, colour) in enumerate(bars):
                axis.bar([x + 0.2 * (offset - 1.5) for x in range(len(mine))], [row.number(field) or 0 for row in mine],
                         width=0.19, color=colour, label=label)
            axis.set_xticks(range(len(mine)), [str(row["ep"]) for row in mine])
            axis.grid(False, axis="x")
            axis.set_title(f"{kind}, {titles.get(nic, nic)}")
        line[0].set_ylabel("microseconds")
    for axis in axes[-1]:
        axis.set_xlabel("ranks (EP), 128 tokens each")
    legend_above(drawn, axes[0][:1])
    return [("Dispatch and combine by ranks", svg(drawn, "MoE latency by ranks"))]
