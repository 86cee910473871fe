"""Draw what was measured, from the raw numbers alone."""

import math
import statistics

import matplotlib
from servers import ROOT

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "carafe"
from matplotlib import pyplot  # noqa: E402 (it picks its backend when it is loaded)

IMAGES = ROOT / "docs/images"
# Okabe and Ito's colours, which are told apart with any kind of sight.
BLUE, SKY, RED = "#0072b2", "#56b4e9", "#d55e00"


def save(figure: pyplot.Figure, name: str) -> None:
    figure.savefig(IMAGES / name, metadata={"Date": None}, facecolor="white")
    pyplot.close(figure)


def times(results: dict) -> None:
    """Draw the times and the loads as bars."""
    figure, (durations, loads) = pyplot.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    bars = {
        "shell script, bare": statistics.median(results["bare"]["shell_seconds"]),
        "site.yml, bare": statistics.median(results["bare"]["site_seconds"]),
        "site.yml, nothing to do": results["noop"]["seconds"],
        "… with Mitogen": results["noop"]["mitogen_seconds"],
    }
    for axes, values, unit, form in (
        (durations, bars, "seconds", "{:.1f}"),
        (loads, results["requests"], "requests a second, of one run", "{:,.0f}"),
    ):
        drawn = axes.barh(list(values), list(values.values()), color="#4c7a9f")
        axes.bar_label(drawn, fmt=form, padding=3)
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        axes.locator_params(axis="x", nbins=4)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, "bench.svg")


def under_load(releases: dict) -> None:
    """Draw latency over time, with the deployments and what they lost, of both ways to release."""
    titles = {
        "deploy.yml": "deploy.yml three times, then rollback.yml",
        "script": "git pull && pip install && supervisorctl restart, three times and back",
    }
    figure, panels = pyplot.subplots(
        2, 1, figsize=(9, 6.6), sharex=True, sharey=True, layout="constrained"
    )
    for axes, (way, title) in zip(panels, titles.items(), strict=True):
        load = releases["under_load"][way]
        # First what lies behind the lines.
        deployments(axes, load)
        latencies(axes, load)
        axes.set_title(
            f"{title}: {load['lost']:,} of {load['requests']:,} requests lost",
            loc="left",
            fontsize="medium",
        )
        axes.set_ylabel("latency, ms")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yscale("log")
    panels[0].set_ylim(0.5, 20000)  # the top is for names and lost requests
    panels[0].set_xlim(left=0)
    panels[0].yaxis.set_major_formatter("{x:,.0f}")
    panels[1].set_xlabel("seconds")
    handles = {
        name: line
        for x in panels
        for line, name in zip(*x.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    save(figure, "releases.svg")


def latencies(axes: pyplot.Axes, load: dict) -> None:
    """Draw the latency of each bucket of time, and a cross where requests were lost."""
    edges = [load["bucket_seconds"] * number for number in range(len(load["max_ms"]) + 1)]
    looks = {
        "max_ms": {"label": "slowest", "color": "0.55", "linewidth": 0.8},
        "p99_ms": {"label": "99 % within", "color": SKY, "linewidth": 1.2},
        "median_ms": {"label": "median", "color": BLUE, "linewidth": 1.8},
    }
    for name, look in looks.items():
        values = [math.nan if x is None else x for x in load[name]]
        axes.stairs(values, edges, baseline=None, **look)
    lost = [since + 0.25 for since in load["half_seconds_with_lost"]]
    axes.scatter(
        lost,
        [0.74] * len(lost),
        transform=axes.get_xaxis_transform(),
        color=RED,
        marker="x",
        s=22,
        label="requests lost",
    )


def deployments(axes: pyplot.Axes, load: dict) -> None:
    """Shade the deployments, and mark when the release changes that answers."""
    for span in load["deployments"]:
        (began, ended), new, old = span["seconds"], span["first_of_new"], span["last_of_old"]
        axes.axvspan(began, ended, color="0.92", linewidth=0, label="a release is made")
        if old < new:
            axes.axvspan(
                old, new, ymax=0.8, color=RED, alpha=0.25, linewidth=0, label="no good answer"
            )
        axes.axvline(
            new, ymax=0.8, color="black", linewidth=1, label="first answer of the new release"
        )
        axes.text(
            (began + ended) / 2,
            0.98,
            span["name"] + (f"\n{span['lost']} lost" if span["lost"] else ""),
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize="small",
        )
