"""What all pictures share: colours that are legible on light and dark paper, panels of curves, bars, and inline SVG."""
import dataclasses
import io
import itertools
import re

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator  # noqa: E402

# Stand for the page's own colours, which depend on whether it is light or dark.
INK, LINE = "#010203", "#040506"
BLUE, ORANGE, GREEN, PURPLE, RED, BROWN, GREY = (
    "#3b82c4", "#e07b39", "#2f9e6e", "#9a6fc0", "#d1495b", "#a0785a", "#8a8f98")
PEER_STYLES = [(PURPLE, "D"), (GREEN, "v"), (RED, "^"), (BROWN, "P"), (GREY, "X")]
WIDTH = 10.6

pyplot.rcParams.update({
    "font.family": "DejaVu Sans", "font.size": 8.5, "axes.titlesize": 9.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.labelsize": 8.5, "legend.fontsize": 8, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.edgecolor": INK, "grid.color": LINE, "grid.linewidth": 0.7,
    "lines.linewidth": 1.7, "lines.markersize": 4.5, "svg.fonttype": "path", "svg.hashsalt": "report",
})


@dataclasses.dataclass
class Series:
    """A curve; points without a value are left out."""
    label: str
    points: list
    colour: str
    marker: str = "o"
    line: str = "-"


@dataclasses.dataclass
class Panel:
    """Curves over one x axis; below them ratios, if there are any."""
    title: str
    y_label: str
    series: list
    ratio_label: str = ""
    ratios: list = dataclasses.field(default_factory=list)
    is_log: bool = False


def figure(rows, columns, height, **options):
    """A figure and its axes as rows of columns."""
    return pyplot.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, layout="constrained", **options)


_numbers = itertools.count(1)


def svg(drawn, title):
    """A figure as SVG for the middle of a page: no prologue, no links, names that no other picture has."""
    text = io.StringIO()
    drawn.savefig(text, format="svg", transparent=True,
                  metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    pyplot.close(drawn)
    prefix = f"p{next(_numbers)}-"
    text = text.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(?:xlink:)?href="#', f'href="#{prefix}', text).replace("url(#", f"url(#{prefix}")
    text = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>',
                  rf'<svg xmlns="http://www.w3.org/2000/svg" \1 role="img" aria-label="{title}">', text)
    return text.replace(INK, "currentColor").replace(LINE, "var(--line)").rstrip()


def binary(size):
    """4K, 256K, 32M."""
    for unit in ("", "K", "M"):
        if size < 1024:
            return f"{size:g}{unit}"
        size /= 1024
    return f"{size:g}G"


def plain(value, _=None):
    """A number without powers of ten and without zeros that say nothing."""
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 100 else f"{value:.3g}"


def log_ticks(axis, values, text):
    """A logarithmic x axis that names the measured values only."""
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(sorted(values)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    if len(values) == 1:
        (value,) = values
        axis.set_xlim(value / 2, value * 2)


def plot(axis, series):
    for one in series:
        points = sorted((x, y) for x, y in one.points if y is not None)
        axis.plot(*zip(*points) if points else ([], []), one.line, color=one.colour, marker=one.marker,
                  label=one.label)


def curves(panels, x_label, text):
    """Panels beside each other: curves, and below them their ratios."""
    has_ratios = any(panel.ratios for panel in panels)
    drawn, axes = figure(2 if has_ratios else 1, len(panels), 4.6 if has_ratios else 3.1,
                         sharex="col", height_ratios=[3, 2] if has_ratios else [1])
    for column, panel in enumerate(panels):
        top, bottom = axes[0][column], axes[-1][column]
        plot(top, panel.series)
        top.set_title(panel.title)
        top.set_ylabel(panel.y_label)
        if panel.is_log:
            top.set_yscale("log")
            low, high = top.get_ylim()
            # Where powers of ten alone would leave one tick or none.
            top.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
            top.yaxis.set_major_formatter(FuncFormatter(plain))
            top.yaxis.set_minor_locator(NullLocator())
        else:
            top.set_ylim(0, 1.05 * max(top.get_ylim()))
        if has_ratios:
            plot(bottom, panel.ratios)
            bottom.axhline(1, color=INK, linewidth=0.9, linestyle=":")
            bottom.set_ylabel(panel.ratio_label)
            bottom.set_ylim(0, max(1.2, 1.1 * max((y for one in panel.ratios for _, y in one.points if y is not None),
                                                  default=1)))
            if len(panel.ratios) > 1:
                bottom.legend(loc="best")
        bottom.set_xlabel(x_label)
        values = {x for one in panel.series for x, y in one.points if y is not None}
        if values:
            log_ticks(bottom, values, text)
    legend_above(drawn, axes[0])
    return drawn


def legend_above(drawn, axes):
    """One legend for all panels, above them: nothing that is drawn is covered."""
    handles = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    # Bars before lines.
    shown = sorted(handles.items(), key=lambda item: isinstance(item[1], Line2D))
    drawn.legend([handle for _, handle in shown], [label for label, _ in shown], loc="outside upper left", ncols=6)


def horizontal_bars(axis, bars, unit, is_log=False):
    """Bars of (label, value, colour), each with its value behind it."""
    bars = [bar for bar in bars if bar[1] is not None]
    drawn = axis.barh([label for label, _, _ in bars], [value for _, value, _ in bars], height=0.62,
                      color=[colour for _, _, colour in bars])
    axis.bar_label(drawn, [f"{plain(value)} {unit}" for _, value, _ in bars], padding=4, color=INK, fontsize=8)
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    largest = max(value for _, value, _ in bars)
    if is_log:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(plain))
        axis.set_xlim(min(value for _, value, _ in bars) / 3, largest * 4)
    else:
        axis.set_xlim(0, largest * 1.25)
