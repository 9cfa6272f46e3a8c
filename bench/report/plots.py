"""The plots of bench/results: a whole search by engine, and how a decode step grows."""

import io
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image

__all__ = ["LARGEST", "plot_scaling", "plot_search"]

LARGEST = 60_000  # bytes of a PNG
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]
MARKERS = "osD^vPX*"
SHARED, UNSHARED, FLOOR = COLOURS[0], COLOURS[1], COLOURS[6]


def plot_search(search: dict) -> dict[str, bytes]:
    """search.png: expansions/s by engine and case, and what the floor would allow.

    Args:
        search: search.json of bench.engines.replay.

    Returns:
        The PNG by file name.
    """
    cases = search["cases"]
    engines = list(
        dict.fromkeys(
            each["engine"] for case in cases for each in case["engines"] if "skipped" not in each
        )
    )
    figure = Figure(figsize=(3 + 1.4 * max(2, len(cases)), 4.2), layout="constrained")
    axes = figure.add_subplot()
    for i, name in enumerate(engines):
        points = [
            (x + 0.7 * ((i + 0.5) / len(engines) - 0.5), each["expansions_per_second"])
            for x, case in enumerate(cases)
            for each in case["engines"]
            if each["engine"] == name and "skipped" not in each
        ]
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        axes.plot(*zip(*points, strict=True), marker, color=colour, label=name, markersize=7)
    for x, case in enumerate(cases):
        bound = case["engines"][0]["expansions"] / case["floor_seconds"]
        label = "floor" if x == 0 else None
        axes.plot([x - 0.4, x + 0.4], [bound, bound], "--", color=FLOOR, lw=1, label=label)
        if x:
            axes.axvline(x - 0.5, color="0.85", lw=0.8)
    axes.set_xticks(range(len(cases)), [_case(case) for case in cases], fontsize=8)
    axes.set_xlim(-0.5, len(cases) - 0.5)
    axes.set_yscale("log")
    axes.set_ylabel("expansions/s (log scale)")
    axes.set_title("One schedule of expansions, by engine", fontsize=10, loc="left")
    _ticks(axes)
    axes.xaxis.grid(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return {"search.png": _png(figure)}


def _case(case: dict) -> str:
    return f"{case['model']}\n{case['precision']}\n{case['branches']} branches"


def plot_scaling(scaling: dict) -> dict[str, bytes]:
    """scaling_<sweep>.png: ms per step, one panel per model; scaling_memory.png: MB of KV.

    Args:
        scaling: scaling.json of bench.engines.scaling.

    Returns:
        The PNGs by file name.
    """
    models = scaling["models"]
    files = {}
    for key in models[0]["sweeps"]:
        figure = _panels(models, key, _times)
        figure.axes[0].set_ylabel("ms per decode step (log scale)")
        files[f"scaling_{key}.png"] = _png(figure)
    figure = _panels(models, "branches", _memory)
    figure.axes[0].set_ylabel("KV cache held (MB, log scale)")
    return files | {"scaling_memory.png": _png(figure)}


def _panels(models: list[dict], key: str, draw: Callable[[Axes, list[dict]], None]) -> Figure:
    """One panel per model with the curves of one sweep."""
    figure = Figure(figsize=(1 + 3.8 * len(models), 4), layout="constrained")
    caption = models[0]["sweeps"][key]["caption"]
    figure.suptitle(caption[0].upper() + caption[1:], fontsize=10)
    for i, model in enumerate(models):
        axes = figure.add_subplot(1, len(models), i + 1)
        sweep = model["sweeps"][key]
        draw(axes, sweep["points"])
        axes.set_title(f"{model['model']}, {model['precision']}", fontsize=9)
        axes.set_xlabel(sweep["axis"])
        xs = [point["x"] for point in sweep["points"]]
        if key != "depth":
            axes.set_xscale("log", base=2)
        axes.set_xticks(xs, [str(x) for x in xs], fontsize=8)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yscale("log")
        _ticks(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = 3 if len(models) > 1 else 1  # what fits below the panels
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )
    return figure


def _times(axes: Axes, points: list[dict]) -> None:
    xs = [point["x"] for point in points]
    for way, colour, marker, label in (
        ("unshared", UNSHARED, "s", "as if nothing was shared (band: quartiles)"),
        ("shared", SHARED, "o", "marco_fast (band: quartiles)"),
    ):
        numbers = [point[way] for point in points]
        axes.plot(
            xs, [1e3 * n["seconds"] for n in numbers], "-" + marker, color=colour, label=label
        )
        low, high = ([1e3 * n["quartiles"][i] for n in numbers] for i in (0, 2))
        axes.fill_between(xs, low, high, color=colour, alpha=0.2, lw=0)
    floors = [1e3 * point["shared"]["floor_seconds"] for point in points]
    axes.plot(xs, floors, "--", color=FLOOR, label="floor: unique reads, products with weights")


def _memory(axes: Axes, points: list[dict]) -> None:
    xs = [point["x"] for point in points]
    for way, style, label in (
        ("unshared", "-s", "as if nothing was shared"),
        ("shared", "-o", "marco_fast"),
    ):
        colour = SHARED if way == "shared" else UNSHARED
        held = [point[way]["kv_bytes"] / 1e6 for point in points]
        axes.plot(xs, held, style, color=colour, label=label)


def _ticks(axes: Axes) -> None:
    """Numbers as 0.5 and 200, not as powers of ten; a light grid."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axes.get_ylim()
    if high / low < 30:  # few powers of ten: label what lies between them
        digits = "23456789" if high / low < 3 else "235"
        axes.yaxis.set_minor_formatter(
            FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in digits else "")
        )
        axes.tick_params(axis="y", which="minor", labelsize=7)
    else:
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.9", lw=0.6)
    axes.set_axisbelow(True)


def _png(figure: Figure) -> bytes:
    """The figure as a PNG of few colours, which is a third of the size.

    Raises:
        ValueError: it is larger than LARGEST.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(64, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    data = buffer.getvalue()
    if len(data) > LARGEST:
        raise ValueError(f"expected a plot of at most {LARGEST} bytes, got {len(data)}")
    return data
