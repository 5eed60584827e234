"""The report: a self-contained index.html that follows the reader's light or dark mode, and three pictures."""

import base64
import statistics
from collections.abc import Callable
from html import escape
from pathlib import Path

import torch
from matplotlib.colors import to_hex

from dgcl_ops import viz
from semi_supervised import figures, summary
from semi_supervised.runs import CONTROL, METHODS, TREATED, Plan, held_out_scenes
from semi_supervised.scenes import CLASS_NAMES


def write(out: Path, plan: Plan, runs: list[summary.Run], result: dict, facts: dict) -> None:
    """Writes index.html, overview.png, before_after.png and density.png.

    Args:
        out: the folder.
        plan: the demo's size.
        runs: all runs.
        result: see `summary.summarise`.
        facts: what the figures depend on, as a table.
    """
    first = {run.method: run.shown for run in reversed(runs)}  # the first seed's runs
    seed = runs[0].seed
    images, classes, densities = shown_maps(plan, first)
    limits = viz.density_limits(*densities.values())
    rows = scene_tiles(images, classes, densities, limits)
    panels = [
        (f"{method}, seed {seed}", first[method], figures.embed(first[method]))
        for method in (CONTROL, TREATED)
    ]
    short = ("label", CONTROL, "+ density loss")
    first_four, last = slice(4), slice(-2, None)  # scenes of the two pictures
    (out / "overview.png").write_bytes(
        figures.overview(
            images[first_four],
            {name: classes[name][first_four] for name in short},
            {"density": densities["density"][first_four]},
            panels,
        )
    )
    (out / "before_after.png").write_bytes(
        figures.before_after(
            images[last],
            {name: classes[name][last] for name in short},
            {
                "density without": densities["density, without"][last],
                "density with": densities["density"][last],
            },
        )
    )
    if (histograms := figures.density_histograms(first[TREATED]["bank"])) is not None:
        (out / "density.png").write_bytes(histograms)

    low, high = limits
    template = Path(__file__).with_name("page.html").read_text()
    parts = {
        "verdict": verdict(result),
        "cards": cards(result),
        "table": table(result),
        "paired": paired_table(result),
        "tiles": scenes(rows),
        "legend": legend(),
        "bar": f'{low:.2f} <img class="bar" alt="" src="{inline(figures.colour_bar())}"> {high:.2f}',
        "seed": str(seed),
        "errors": errors(result),
        "scatter": themed(
            lambda theme: figures.scatter_figure(panels, theme),
            "t-SNE of the features of both runs, coloured by class",
        ),
        "curves": themed(
            lambda theme: figures.curve_figure(runs, theme),
            "mIoU, losses and mean density against the step",
        ),
        "matched": matched(result),
        **{
            name: str(getattr(plan, name))
            for name in ("labelled", "unlabelled", "evaluated", "split")
        },
        **{
            name: str(getattr(plan.settings, name))
            for name in ("steps", "warm_up", "batch", "contrast_weight")
        },
        "facts": "".join(
            f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items()
        ),
    }
    for name, value in parts.items():
        template = template.replace("{{" + name + "}}", value)
    (out / "index.html").write_text(template)


def shown_maps(plan: Plan, first: dict) -> tuple[torch.Tensor, dict, dict]:
    """Returns the scenes [N, 3, H, W], and by title their class maps and density maps, [N, H, W]."""
    images, labels = (x[: plan.shown] for x in held_out_scenes(plan))
    control, treated = first[CONTROL], first[TREATED]
    classes = {
        "label": labels,
        CONTROL: control["prediction"],
        "+ density loss": treated["prediction"],
        "pseudo label": treated["pseudo label"],
    }
    densities = {"density": treated["density"], "density, without": control["density"]}
    classes, densities = (
        {title: torch.as_tensor(maps) for title, maps in each.items()}
        for each in (classes, densities)
    )
    return images, classes, densities


def scene_tiles(
    images: torch.Tensor, classes: dict, densities: dict, limits: tuple[float, float]
) -> list[list[tuple]]:
    """Returns for each scene the pairs (title, tile) of image, label and the runs' results."""
    return [
        [("image", image.permute(1, 2, 0).numpy())]
        + [(title, viz.class_image(maps[i], len(CLASS_NAMES))) for title, maps in classes.items()]
        + [(title, viz.density_image(image, maps[i], limits)) for title, maps in densities.items()]
        for i, image in enumerate(images)
    ]


# ---- pieces of the page -------------------------------------------------------------------------


def verdict(result: dict) -> str:
    """Summarises the numbers in two sentences."""
    miou = result["paired"]["miou"]
    seeds = len(miou["differences"])
    gain = (
        result["methods"][CONTROL]["miou"]["mean"] - result["methods"]["supervised"]["miou"]["mean"]
    )
    better = [
        f"{title} in {result['paired'][metric]['better']} of {seeds}"
        for metric, title, *_ in summary.METRICS[1:]
    ]
    return (
        f"Self-training changes mIoU by {gain:+.1f} points relative to training on the labelled scenes alone. "
        f"The density loss, all else equal, changes it by <strong>{summary.number('miou', miou, '+')}</strong> "
        f"(better in {miou['better']} of {seeds} seeds). "
        f"The features cluster better by {better[0]}, by {better[1]} and by {better[2]} seeds. "
        "Torn-off pieces of digits in the scenes count as background."
    )


def cards(result: dict) -> str:
    """Renders each measure without and with the density loss."""
    cells = []
    for metric, title, digits, upward in summary.METRICS:
        values = [result["methods"][method][metric]["mean"] for method in (CONTROL, TREATED)]
        paired = result["paired"][metric]
        clear = abs(paired["mean"]) > (paired["spread"] or 0)  # beyond the spread over the seeds
        style = ("good" if (paired["mean"] > 0) == upward else "bad") if clear else "even"
        cells.append(
            f"<div class='card'><h3>{title} <small>{'higher' if upward else 'lower'} is better</small></h3>"
            f"<p class='pair'>{values[0]:.{digits}f} <span>→</span> {values[1]:.{digits}f}</p>"
            f"<p class='{style}'>{summary.number(metric, paired, '+')}</p></div>"
        )
    return "".join(cells)


def table(result: dict) -> str:
    """Renders the table of all methods."""
    head = "".join(f"<th>{title} {'↑' if up else '↓'}</th>" for _, title, _, up in summary.METRICS)
    body = ""
    for method, values in result["methods"].items():
        cells = "".join(f"<td>{summary.number(m, values[m])}</td>" for m, *_ in summary.METRICS)
        body += (
            f"<tr><th>{dot(figures.METHOD_COLOURS[method])}{method}"
            f"<small>{escape(METHODS[method])}</small></th>{cells}</tr>"
        )
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"


def paired_table(result: dict) -> str:
    """Renders density contrast minus self-training, seed by seed."""
    head = "".join(f"<th>{title} {'↑' if up else '↓'}</th>" for _, title, _, up in summary.METRICS)
    seeds = [row["seed"] for row in result["runs"] if row["method"] == TREATED]
    body = ""
    for i, seed in enumerate(seeds):
        cells = ""
        for metric, _, digits, upward in summary.METRICS:
            difference = result["paired"][metric]["differences"][i]
            style = "good" if (difference > 0) == upward else "bad"
            cells += f"<td class='{style}'>{difference:+.{digits}f}</td>"
        body += f"<tr><th>seed {seed}</th>{cells}</tr>"
    cells = "".join(
        f"<td>{result['paired'][m]['better']} of {len(seeds)}</td>" for m, *_ in summary.METRICS
    )
    body += f"<tr class='total'><th>better in</th>{cells}</tr>"
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"


def errors(result: dict) -> str:
    """Renders the percentage of wrong pixels by fifths of density, averaged over the seeds."""
    head = "".join(
        f"<th>{name}</th>" for name in ("sparsest fifth", "2nd", "3rd", "4th", "densest")
    )
    body = ""
    for method in (CONTROL, TREATED):
        rows = [row["error_by_density"] for row in result["runs"] if row["method"] == method]
        columns = zip(*rows, strict=True) if all(rows) else ()
        cells = "".join(f"<td>{statistics.fmean(column):.1f} %</td>" for column in columns)
        body += f"<tr><th>{dot(figures.METHOD_COLOURS[method])}{method}</th>{cells}</tr>"
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"


def dot(colour: str) -> str:
    return f"<i class='dot' style='background:{colour}'></i>"


def scenes(rows: list[list[tuple]]) -> str:
    return "".join(
        "<div class='scene'>"
        + "".join(
            f"<figure><img src='{inline(figures.tile_png(tile))}' alt='{title}'>"
            f"<figcaption>{title}</figcaption></figure>"
            for title, tile in row
        )
        + "</div>"
        for row in rows
    )


def legend() -> str:
    names = [*CLASS_NAMES, "ignored"]
    colours = map(to_hex, viz.class_colors(len(CLASS_NAMES)))
    return "".join(
        f"<span>{dot(colour)}{name}</span>" for name, colour in zip(names, colours, strict=True)
    )


def matched(result: dict) -> str:
    """Renders for how many steps the paired runs were identical, grouping seeds with the same numbers."""
    seeds = {}
    for seed, steps in result["matched"].items():
        text = (
            f"identical for {steps['identical']} steps, "
            f"{steps['before the first contrast']} of them before the first step with a contrast"
        )
        seeds.setdefault(text, []).append(str(seed))
    return "; ".join(f"seed {', '.join(each)}: {text}" for text, each in seeds.items())


def themed(draw: Callable[[dict], bytes], alt: str) -> str:
    """Renders a figure twice, for a light and for a dark page."""
    return (
        f"<picture><source media='(prefers-color-scheme: dark)' srcset='{inline(draw(figures.DARK))}'>"
        f"<img src='{inline(draw(figures.LIGHT))}' alt='{escape(alt)}'></picture>"
    )


def inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
