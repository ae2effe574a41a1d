"""Figures from arrays: grids of images, point clouds, histograms, learning curves, trajectories.

All arrays are NumPy or JAX arrays in data units (the range of digits is `(0, 16)`, of MNIST `(0, 255)`). A
figure is written whole or not at all, and nothing global of Matplotlib is touched: no pyplot, no
rcParams. Wrong shapes raise `ValueError`; a file that cannot be written raises `UserError`.

Pictures are about 1200 pixels wide, for reading at 800; grids of images show every pixel as a square of
whole pixels.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from genjax.training.run_dir import atomic_write

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

FilePath = str | os.PathLike[str]
LogDensity = Callable[[Any], ArrayLike]

_DPI = 150
_WIDTH = 8.0  # inches
_INK, _MUTED, _FAINT = "#262626", "#707070", "#d4d4d4"
_BLUE, _ORANGE, _GREEN, _PURPLE, _RED = "#1f5fa8", "#c4621a", "#2c7a4b", "#7a4fa3", "#cf222e"
_DENSITY_COLOURS = ("#ffffff", "#bcd6ee", "#5b9bd5", "#1f5fa8", "#0b2545")
_GAP = 2
_GAP_GREY = 128
_SMALLEST_CELL = 56
_GRID_WIDTH = 480
_STRIP_WIDTH = 800
_GIF_WIDTH = 360
_GIF_GREYS = [round(round(grey * 31 / 255) * 255 / 31) for grey in range(256)]
_FONT_PIXELS = 15
_MOST_IMAGES = 256
_MOST_POINTS = 5000
_MOST_FRAMES = 40
_ZOOM_RATIO = 4.0
_TRAJECTORY_LIMITS = (0.005, 0.06)  # tail and margin
_TRAJECTORY_BINS = 64


def image_grid(
    path: FilePath,
    images: ArrayLike,
    *,
    value_range: tuple[float, float],
    columns: int | None = None,
    row_labels: Sequence[str] | None = None,
) -> None:
    """Write images as a PNG grid, row by row, every pixel enlarged by the same whole factor.

    A cell's shorter side has at least 56 pixels, and a grid of few images is enlarged to about 480 in width;
    between cells are 2 pixels of grey. A pixel that is not finite is red.

    Args:
        path: the file to write; one that exists is replaced.
        images: `[N, H, W, C]` with C = 1 (grey) or 3 (RGB).
        value_range: the values shown as black and as white; what is beyond is clipped.
        columns: images a row; by default such that the grid is about square.
        row_labels: one text a row, written to its left.

    Raises:
        ValueError: shapes or a range that do not fit.
        UserError: the file cannot be written.
    """
    pixels = _as_pixels(images, value_range)
    num, height, width, _ = pixels.shape
    columns = _near_square_columns(num, height / width) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns is {columns}; expected at least 1")
    _write_png(path, _tiled(pixels, columns, _GRID_WIDTH, row_labels=row_labels))


def image_pairs(
    path: FilePath, above: ArrayLike, below: ArrayLike, *, value_range: tuple[float, float], columns: int
) -> None:
    """`image_grid` in pairs of rows: `columns` images of `above [N, H, W, C]`, below them those of `below`, and so on.

    The last pair of rows is filled up with white.
    """
    first, second = np.asarray(above).astype(np.float64), np.asarray(below).astype(np.float64)
    if first.shape != second.shape:
        raise ValueError(f"above has shape {first.shape} and below {second.shape}; expected one shape")
    columns = min(columns, len(first))
    missing = ((0, -len(first) % columns), *[(0, 0)] * (first.ndim - 1))
    rows = [np.pad(images, missing, constant_values=value_range[1]) for images in (first, second)]
    rows = [images.reshape(-1, columns, *images.shape[1:]) for images in rows]
    pairs = np.stack(rows, axis=1).reshape(-1, *first.shape[1:])
    image_grid(path, pairs, value_range=value_range, columns=columns)


def curves(
    path: FilePath, families: ArrayLike, *, data: ArrayLike | None = None, names: tuple[str, str] = ("first", "second")
) -> None:
    """Write two families of curves in one panel, over the points of `data` in grey.

    Args:
        path: the PNG to write.
        families: `[2, K, M, D]`: K curves through M points each, D >= 2; along the first two principal axes of the
            data (of the curves where there are none) where D > 2.
        data: `[N, D]` or None.
        names: of the families.

    Raises:
        ValueError: other shapes.
        UserError: the file cannot be written.
    """
    lines = np.asarray(families).astype(np.float64)
    if lines.ndim != 4 or lines.shape[0] != 2 or lines.shape[3] < 2 or not lines.size:
        raise ValueError(f"families have shape {lines.shape}; expected [2, K, M, D] with D >= 2")
    points = lines.reshape(-1, lines.shape[3]) if data is None else np.asarray(data).astype(np.float64)
    if lines.shape[3] > 2:
        plane = _principal_plane(points)
        lines, points = plane.project(lines), plane.project(points)
    view = _framed(_interval(points[:, 0]), _interval(points[:, 1]))
    figure = _figure(_WIDTH, _WIDTH * view.height_over_width + 0.4)
    axes = figure.subplots()
    if data is not None:
        _draw_points(axes, points[:_MOST_POINTS], view, _FAINT, 4.0)
    for family, colour, name in zip(lines, (_BLUE, _ORANGE), names, strict=True):
        for index, line in enumerate(family):
            axes.plot(line[:, 0], line[:, 1], color=colour, linewidth=0.8, label=name if index == 0 else None)
    _set_view(axes, view)
    _set_heading(axes, "")
    _style(axes)
    _write_png(path, _rendered(figure))


def scatter(
    path: FilePath,
    samples: ArrayLike,
    data: ArrayLike | None = None,
    *,
    title: str = "",
    names: tuple[str, str] = ("data", "samples"),
) -> None:
    """Write the points of `data` and of `samples` as two panels with the same limits.

    Both panels show the same number of points, or, where both sets have more than 5000, densities on one
    colour scale. The limits come from the data (from the samples where there are none), and how many points
    lie outside them, or are not finite, is written below.

    Args:
        path: the PNG to write.
        samples: `[N, 2]`.
        data: `[M, 2]` or None: then there is one panel.
        title: a line above the panels.
        names: what data and samples are called.

    Raises:
        ValueError: other shapes, or no points.
        UserError: the file cannot be written.
    """
    data_name, samples_name = names
    clouds = {samples_name: _as_points(samples, "samples")}
    if data is not None:
        clouds = {data_name: _as_points(data, "data"), **clouds}
    reference = next(iter(clouds.values()))
    view = _framed(_interval(reference[:, 0]), _interval(reference[:, 1]))
    fewest = min(len(points) for points in clouds.values())
    columns = int(np.clip(4.5 * fewest ** (1 / 3), 32, 300))
    densities = (
        {name: _density(points, view, columns) for name, points in clouds.items()} if fewest > _MOST_POINTS else {}
    )
    peak = float(next(iter(densities.values())).max()) if densities else 1.0
    size = float(np.clip(6000 / fewest, 2.0, 12.0))
    captions = {name: _outside_caption(points, view) for name, points in clouds.items()}

    width = _WIDTH if len(clouds) == 2 else _WIDTH / 2
    height = 3.62 * view.height_over_width + 0.5 + 0.25 * bool(title) + 0.2 * any(captions.values())
    figure = _figure(width, height)
    if title:
        figure.suptitle(title, fontsize=10, color=_INK)
    panels = figure.subplots(1, len(clouds), squeeze=False)[0]
    for axes, (name, points) in zip(panels, clouds.items(), strict=True):
        if densities:
            _draw_density(axes, densities[name], view, peak)
            shown = f"{len(points):,}"
        else:
            _draw_points(axes, points[:fewest], view, _INK if name == data_name else _BLUE, size)
            shown = f"{fewest:,}" + (f" of {len(points):,}" if fewest < len(points) else "")
        axes.set_title(f"{name} ({shown})", fontsize=10, color=_INK)
        if any(captions.values()):
            axes.set_xlabel(captions[name] or " ", fontsize=8, color=_MUTED)
        _style(axes)
    _write_png(path, _rendered(figure))


def histogram(
    path: FilePath,
    samples: ArrayLike,
    *,
    log_density: LogDensity | None = None,
    data: ArrayLike | None = None,
    title: str = "",
    names: tuple[str, str] = ("data", "samples"),
) -> None:
    """Write the histogram of samples of one number against the true density, or against the data's.

    Args:
        path: the PNG to write.
        samples: `[N]` or `[N, 1]`.
        log_density: the true one, `x [B, 1] -> [B]` in nats.
        data: `[M]` or `[M, 1]`; shown as an outline where there is no `log_density`.
        title: a line above the axes.
        names: what data and samples are called.

    Raises:
        ValueError: other shapes, or no samples.
        UserError: the file cannot be written.
    """
    values = _as_values(samples, "samples")
    data_values = None if data is None else _as_values(data, "data")
    low, high = _interval(values if data_values is None else data_values)
    if log_density is not None and data_values is None:
        low, high = _interval_with_mass(log_density, low, high)
    edges = np.linspace(low, high, _bin_count(len(values)) + 1)

    figure = _figure(_WIDTH, 3.6)
    axes = figure.subplots()
    axes.stairs(
        _fraction_a_unit(values, edges),
        edges,
        fill=True,
        color=_BLUE,
        alpha=0.45,
        label=f"{names[1]} ({len(values):,})",
    )
    if log_density is not None:
        grid = np.linspace(low, high, 801)
        axes.plot(grid, _true_density(log_density, grid), color=_INK, linewidth=1.6, label="true density")
    elif data_values is not None:
        label = f"{names[0]} ({len(data_values):,})"
        axes.stairs(_fraction_a_unit(data_values, edges), edges, color=_INK, linewidth=1.4, label=label)
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("density", fontsize=9, color=_INK)
    outside = len(values) - int(np.sum((values >= low) & (values <= high)))
    if outside:
        axes.set_xlabel(f"{outside:,} of {len(values):,} samples outside", fontsize=8, color=_MUTED)
    _set_heading(axes, title)
    _style(axes)
    _write_png(path, _rendered(figure))


def samples_figure(
    path: FilePath,
    samples: ArrayLike,
    *,
    data: ArrayLike | None = None,
    value_range: tuple[float, float] | None = None,
    log_density: LogDensity | None = None,
    names: tuple[str, str] = ("data", "samples"),
) -> None:
    """Write the figure that suits the samples' event shape.

    | samples         | figure                                                                      |
    |-----------------|-----------------------------------------------------------------------------|
    | `[N, H, W, C]`  | `image_grid` of the first 256                                               |
    | `[N, 2]`        | `scatter` beside the data                                                   |
    | `[N]`, `[N, 1]` | `histogram` against the true density, or the data                           |
    | `[N, D]`        | `scatter` along the first two principal axes of the data, or of the samples |

    Args:
        path: the PNG to write.
        samples: `[N, ...]`.
        data: held-out data `[M, ...]` of the same event shape.
        value_range: of images; by default the extremes of the data, or of the samples.
        log_density: see `histogram`.
        names: what data and samples are called.

    Raises:
        ValueError: another shape.
        UserError: the file cannot be written.
    """
    samples = np.asarray(samples)
    data = None if data is None else np.asarray(data)
    if data is not None and data.shape[1:] != samples.shape[1:]:
        raise ValueError(f"samples {samples.shape} and data {data.shape} differ in their event shape")
    if samples.ndim == 4:
        value_range = value_range or _extremes(samples if data is None else data)
        image_grid(path, samples[:_MOST_IMAGES], value_range=value_range)
    elif samples.ndim == 1 or samples.shape[1:] == (1,):
        histogram(path, samples, log_density=log_density, data=data, names=names)
    elif samples.shape[1:] == (2,):
        scatter(path, samples, data, names=names)
    elif samples.ndim == 2 and samples.shape[1] > 2:
        reference, name = (samples, "samples") if data is None else (data, "data")
        plane = _principal_plane(reference)
        title = (
            f"the first two principal axes of the {name}: {plane.variance_share:.0%} of the variance "
            f"in {samples.shape[1]} dimensions"
        )
        scatter(path, plane.project(samples), None if data is None else plane.project(data), title=title, names=names)
    else:
        raise ValueError(f"samples have shape {samples.shape}; expected [N, H, W, C], [N, D] or [N]")


def loss_curve(
    path: FilePath,
    records: Sequence[Mapping[str, Any]],
    *,
    keys: Sequence[str] = ("loss",),
    held_out_prefix: str = "held_out_",
    title: str = "",
) -> None:
    """Write the curves of a run's metrics over its training steps.

    Each key is drawn faintly as measured and strongly as a running mean; what was measured on held-out data
    is marked by points. Values are on a logarithmic axis where all are positive and span more than a
    factor of 10. Where a value is not finite the axis is marked in red. The learning rate, where the
    records have it, is on an axis of its own.

    Args:
        path: the PNG to write.
        records: `{"step": 200, "loss": 0.73, "held_out_loss": 0.81, "learning_rate": 1e-3}`, as
            `genjax.training.log.read_metrics` returns them: any key may be missing, None is not finite.
        keys: the metrics to draw.
        held_out_prefix: what the name of a metric has before it when it was measured on held-out data.
        title: a line above the axes.

    Raises:
        ValueError: no record has any of the keys.
        UserError: the file cannot be written.
    """
    trained = {key: _series(records, key) for key in keys}
    held_out = {key: _series(records, held_out_prefix + key) for key in keys}
    every = (*trained.values(), *held_out.values())
    drawn = np.concatenate([series.values for series in every])
    lost = np.concatenate([series.lost_steps for series in every])
    if not drawn.size and not lost.size:
        raise ValueError(f"none of the {len(records)} records has {' or '.join(keys)}")

    learning_rate = _series(records, "learning_rate")
    ratios = (5, 1) if learning_rate.values.size else (1,)
    figure = _figure(_WIDTH, 3.6 + 0.6 * (len(ratios) - 1))
    panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    axes = panels[0]
    for key, colour in zip(keys, _colours(len(keys)), strict=True):
        _draw_series(axes, trained[key], key.replace("_", " "), colour)
        _draw_held_out(axes, held_out[key], key.replace("_", " "), _ORANGE if len(keys) == 1 else colour)
    _scale_values(axes, drawn)
    if lost.size:
        axes.plot(
            lost,
            np.zeros_like(lost),
            color=_RED,
            label="not finite",
            linestyle="",
            marker="|",
            markersize=12,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )
    _set_heading(axes, title)
    if learning_rate.values.size:
        panels[1].plot(learning_rate.steps, learning_rate.values, color=_MUTED, linewidth=1.2)
        panels[1].set_ylim(0, 1.15 * learning_rate.values.max() or 1.0)
        panels[1].set_yticks([0.0, float(learning_rate.values.max())])
        panels[1].yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
        panels[1].set_ylabel("learning\nrate", fontsize=8, color=_MUTED)
    for panel in panels:
        panel.margins(x=0.01)
        panel.grid(True, which="major", color=_FAINT, linewidth=0.5)
        panel.set_axisbelow(True)
        _style(panel)
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    panels[-1].set_xlabel("step", fontsize=9, color=_INK)
    _write_png(path, _rendered(figure))


def trajectory_strip(
    path: FilePath,
    trajectory: ArrayLike,
    times: ArrayLike,
    *,
    value_range: tuple[float, float] | None = None,
    moments: int = 8,
    examples: int = 6,
) -> None:
    """Write evenly spaced moments of a trajectory from noise to data, side by side, each with its time.

    Images: a grid with an example a row and a moment a column. Points and numbers: a panel a moment, with
    the same limits unless the noise is more than 4 times as wide as the samples (then each moment has
    limits of its own, which are written below it).

    Args:
        path: the PNG to write.
        trajectory: `[T + 1, N, ...]` from noise to data; event shapes as in `samples_figure`.
        times: `[T + 1]`, on whichever clock.
        value_range: of images; by default the extremes of the last moment.
        moments: how many to show; no more than there are.
        examples: rows of images; no more than there are.

    Raises:
        ValueError: shapes that do not fit, or fewer than two moments.
        UserError: the file cannot be written.
    """
    states, clock = _moments(trajectory, times, moments)
    labels = _time_labels(clock)
    labels[0] = f"t = {labels[0]}"
    if states.ndim == 5:
        value_range = value_range or _extremes(states[-1])
        rows = states[:, :examples].swapaxes(0, 1)
        pixels = _as_pixels(rows.reshape(-1, *states.shape[2:]), value_range)
        _write_png(path, _tiled(pixels, len(states), _STRIP_WIDTH, column_labels=labels))
        return

    scene = _scene(states)
    figure = _figure(_WIDTH, _WIDTH / len(states) + (0.4 if scene.zooms else 0.2))
    panels = figure.subplots(1, len(states), squeeze=False)[0]
    for moment, (axes, label) in enumerate(zip(panels, labels, strict=True)):
        _style_panel(axes)
        scene.draw(axes, moment)
        axes.set_title(label, fontsize=9, color=_INK)
        if scene.zooms:
            axes.set_xlabel(f"width {scene.widths[moment]}", fontsize=8, color=_MUTED)
    _write_png(path, _rendered(figure))


def trajectory_gif(
    path: FilePath,
    trajectory: ArrayLike,
    times: ArrayLike,
    *,
    value_range: tuple[float, float] | None = None,
    seconds: float = 2.0,
    hold: float = 1.0,
    examples: int = 25,
) -> None:
    """Write a trajectory from noise to data as an animated GIF that repeats for ever.

    At most 40 evenly spaced moments are shown, then the last is held. Limits are fixed, unless the noise is
    more than 4 times as wide as the samples.

    Args:
        path: the GIF to write.
        trajectory: `[T + 1, N, ...]` from noise to data; event shapes as in `samples_figure`.
        times: `[T + 1]`, on whichever clock.
        value_range: of images; by default the extremes of the last moment.
        seconds: from the first moment to the last.
        hold: seconds for which the last moment stays.
        examples: images in the grid; no more than there are.

    Raises:
        ValueError: shapes that do not fit, or fewer than two moments.
        UserError: the file cannot be written.
    """
    states, clock = _moments(trajectory, times, _MOST_FRAMES)
    labels = [f"t = {label}" for label in _time_labels(clock)]
    if states.ndim == 5:
        value_range = value_range or _extremes(states[-1])
        columns = _near_square_columns(min(examples, states.shape[1]), states.shape[2] / states.shape[3])
        pictures = [_tiled(_as_pixels(images[:examples], value_range), columns, _GIF_WIDTH) for images in states]
    else:
        scene = _scene(states)
        pictures = _scene_pictures(scene)
        if scene.zooms:
            labels = [f"{label}, width {width}" for label, width in zip(labels, scene.widths, strict=True)]
    frames = [_captioned(picture, label) for picture, label in zip(pictures, labels, strict=True)]
    delay = round(seconds * 100 / len(frames)) * 10
    _write_gif(path, frames, [delay] * (len(frames) - 1) + [delay + round(hold * 1000)])


def _as_pixels(images: ArrayLike, value_range: tuple[float, float]) -> np.ndarray:
    """`[N, H, W, C]` in data units as RGB `[N, H, W, 3]` uint8."""
    values = np.asarray(images).astype(np.float64)
    if values.ndim != 4 or values.shape[-1] not in (1, 3) or 0 in values.shape:
        raise ValueError(f"images have shape {values.shape}; expected [N, H, W, C] with C = 1 or 3")
    low, high = value_range
    if not low < high:
        raise ValueError(f"value_range is {value_range}; expected (lowest, highest) with lowest < highest")
    finite = np.isfinite(values)
    unit = np.clip((np.where(finite, values, low) - low) / (high - low), 0.0, 1.0)
    pixels = np.broadcast_to(np.round(unit * 255).astype(np.uint8), (*values.shape[:-1], 3)).copy()
    pixels[~finite.all(axis=-1)] = _rgb(_RED)
    return pixels


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _near_square_columns(num: int, height_over_width: float) -> int:
    """Columns of a grid that is about square: one without empty cells if it is at most 1.5 times wider."""
    square = (num * height_over_width) ** 0.5
    smallest, largest = int(np.ceil(square)), int(np.floor(1.5 * square))
    without_empty_cells = (columns for columns in range(smallest, largest + 1) if num % columns == 0)
    return max(1, min(num, next(without_empty_cells, smallest)))


def _tiled(
    pixels: np.ndarray,
    columns: int,
    wanted_width: int,
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
) -> "Image":
    """Images `[N, H, W, 3]` uint8 in a grid, row by row, with labels in margins to the left and above."""
    from PIL import Image, ImageDraw, ImageFont

    num, height, width, _ = pixels.shape
    columns = min(columns, num)
    rows = -(-num // columns)
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"{len(row_labels)} row labels for {rows} rows")
    scale = max(1, -(-_SMALLEST_CELL // min(height, width)), wanted_width // (columns * width))
    cell_height, cell_width = height * scale, width * scale
    grid = np.full((_GAP + rows * (cell_height + _GAP), _GAP + columns * (cell_width + _GAP), 3), _GAP_GREY, np.uint8)
    tops = [_GAP + row * (cell_height + _GAP) for row in range(rows)]
    lefts = [_GAP + column * (cell_width + _GAP) for column in range(columns)]
    for index, image in enumerate(pixels):
        top, left = tops[index // columns], lefts[index % columns]
        enlarged = image.repeat(scale, axis=0).repeat(scale, axis=1)
        grid[top : top + cell_height, left : left + cell_width] = enlarged
    if not row_labels and not column_labels:
        return Image.fromarray(grid)

    font = ImageFont.load_default(_FONT_PIXELS)
    margin_left = round(max((font.getlength(text) for text in row_labels), default=0) + 14) if row_labels else 0
    margin_top = _FONT_PIXELS + 10 if column_labels else 0
    canvas = Image.new("RGB", (margin_left + grid.shape[1], margin_top + grid.shape[0]), "white")
    canvas.paste(Image.fromarray(grid), (margin_left, margin_top))
    draw = ImageDraw.Draw(canvas)
    for text, top in zip(row_labels or (), tops, strict=False):
        draw.text((margin_left - 7, margin_top + top + cell_height / 2), text, _INK, font, anchor="rm")
    for text, left in zip(column_labels or (), lefts, strict=False):
        draw.text((margin_left + left + cell_width / 2, margin_top / 2), text, _INK, font, anchor="mm")
    return canvas


def _captioned(picture: "Image", text: str) -> "Image":
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.new("RGB", (picture.width, picture.height + _FONT_PIXELS + 11), "white")
    canvas.paste(picture, (0, _FONT_PIXELS + 11))
    font = ImageFont.load_default(_FONT_PIXELS)
    ImageDraw.Draw(canvas).text((4, (_FONT_PIXELS + 11) / 2), text, _INK, font, anchor="lm")
    return canvas


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.07, h_pad=0.05, wspace=0.02)
    return figure


def _rendered(figure: "Figure") -> "Image":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _write_png(path: FilePath, picture: "Image") -> None:
    atomic_write(path, lambda file: picture.save(file, format="PNG", optimize=True))


def _write_gif(path: FilePath, frames: Sequence["Image"], delays: Sequence[int]) -> None:
    """Frames shown for their delays (milliseconds), in 32 greys or in one palette, that of the last frame."""
    from PIL.Image import Dither

    if all(_is_grey(frame) for frame in frames):
        first, *rest = (frame.convert("L").point(_GIF_GREYS) for frame in frames)
    else:
        palette = frames[-1].quantize(256)
        palette.putpalette([255 if channel > 248 else channel for channel in palette.getpalette() or ()])
        first, *rest = (frame.quantize(palette=palette, dither=Dither.NONE) for frame in frames)
    atomic_write(
        path,
        lambda file: first.save(file, format="GIF", save_all=True, append_images=rest, duration=list(delays), loop=0),
    )


def _is_grey(picture: "Image") -> bool:
    pixels = np.asarray(picture)
    return bool((pixels == pixels[..., :1]).all())


def _style(axes: "Axes") -> None:
    axes.set_facecolor("none")
    axes.tick_params(which="major", labelsize=8, colors=_MUTED, length=3.5, width=0.6)
    axes.tick_params(which="minor", colors=_MUTED, length=2, width=0.4)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set(color=_FAINT, linewidth=0.8)


def _style_panel(axes: "Axes") -> None:
    """A thin frame without ticks: a panel of a strip, a frame of an animation."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=_FAINT, linewidth=0.8)


def _set_heading(axes: "Axes", title: str) -> None:
    """The title above the axes to the left, the legend above them to the right: neither hides a curve."""
    axes.set_title(title, fontsize=10, color=_INK, loc="left")
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=4,
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
        borderaxespad=0.2,
        handlelength=1.6,
    )


def _as_points(points: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(points).astype(np.float64)
    if values.ndim != 2 or values.shape[1] != 2 or not len(values):
        raise ValueError(f"{name} have shape {values.shape}; expected [N, 2] with N >= 1")
    return values


def _as_values(values: ArrayLike, name: str) -> np.ndarray:
    flat = np.asarray(values).astype(np.float64)
    if flat.ndim == 2 and flat.shape[1] == 1:
        flat = flat[:, 0]
    if flat.ndim != 1 or not len(flat):
        raise ValueError(f"{name} have shape {np.shape(values)}; expected [N] or [N, 1] with N >= 1")
    return flat


class _View(NamedTuple):
    """The limits of a panel."""

    left: float
    right: float
    bottom: float
    top: float
    height_over_width: float

    def holds(self, points: np.ndarray) -> np.ndarray:
        x, y = points[:, 0], points[:, 1]
        return (x >= self.left) & (x <= self.right) & (y >= self.bottom) & (y <= self.top)


def _interval(values: np.ndarray, tail: float = 0.001, margin: float = 0.15) -> tuple[float, float]:
    """From the quantile `tail` to `1 - tail` of the finite values, and a margin (of its width) on each side."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return -1.0, 1.0
    low, high = np.quantile(finite, (tail, 1 - tail))
    space = margin * (high - low) or max(1e-3, 0.1 * abs(low))
    return float(low - space), float(high + space)


def _framed(x: tuple[float, float], y: tuple[float, float], flattest: float = 0.6) -> _View:
    width, height = x[1] - x[0], y[1] - y[0]
    if max(width, height) > 4 * min(width, height):
        return _View(*x, *y, 1.0)
    framed_width, framed_height = max(width, height), max(height, flattest * width)
    more_x, more_y = (framed_width - width) / 2, (framed_height - height) / 2
    return _View(x[0] - more_x, x[1] + more_x, y[0] - more_y, y[1] + more_y, framed_height / framed_width)


def _outside_caption(points: np.ndarray, view: _View) -> str:
    outside = len(points) - int(view.holds(points).sum())
    return f"{outside:,} of {len(points):,} outside" if outside else ""


def _density(points: np.ndarray, view: _View, columns: int) -> np.ndarray:
    """Fraction of all points a unit of area, on a grid of `columns` columns."""
    rows = round(columns * view.height_over_width)
    inside = points[view.holds(points)]
    extent = ((view.left, view.right), (view.bottom, view.top))
    counts, x_edges, y_edges = np.histogram2d(inside[:, 0], inside[:, 1], bins=(columns, rows), range=extent)
    return counts.T / (len(points) * (x_edges[1] - x_edges[0]) * (y_edges[1] - y_edges[0]))


def _draw_density(axes: "Axes", density: np.ndarray, view: _View, peak: float) -> "Artist":
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("density", _DENSITY_COLOURS)
    image = axes.imshow(
        density, cmap=colours, vmin=0, vmax=peak, extent=view[:4], origin="lower", aspect="auto", zorder=0
    )
    _set_view(axes, view)
    return image


def _draw_points(axes: "Axes", points: np.ndarray, view: _View, colour: str, size: float) -> "Artist":
    inside = points[view.holds(points)]
    dots = axes.scatter(inside[:, 0], inside[:, 1], s=size, c=colour, alpha=0.5, linewidths=0)
    _set_view(axes, view)
    return dots


def _set_view(axes: "Axes", view: _View) -> None:
    axes.set_xlim(view.left, view.right)
    axes.set_ylim(view.bottom, view.top)
    axes.set_box_aspect(view.height_over_width)


def _bin_count(num: int) -> int:
    return int(np.clip(4 * num ** (1 / 3), 20, 160))


def _fraction_a_unit(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Histogram whose area is the fraction of all values that lie within the edges."""
    finite = values[np.isfinite(values)]
    return np.histogram(finite, edges)[0] / (len(values) * np.diff(edges))


def _true_density(log_density: LogDensity, grid: np.ndarray) -> np.ndarray:
    density = np.exp(np.asarray(log_density(grid[:, None].astype(np.float32))).astype(np.float64))
    if density.shape != grid.shape:
        raise ValueError(f"log_density returned shape {density.shape} for x [{len(grid)}, 1]; expected [{len(grid)}]")
    return density


def _interval_with_mass(log_density: LogDensity, low: float, high: float) -> tuple[float, float]:
    """The interval widened to where the density exceeds 0.1 % of its peak, so that a missed mode is seen."""
    grid = np.linspace(low - 2 * (high - low), high + 2 * (high - low), 2001)
    density = _true_density(log_density, grid)
    likely = grid[density > 1e-3 * density.max()]
    return min(low, float(likely.min())), max(high, float(likely.max()))


def _extremes(values: np.ndarray) -> tuple[float, float]:
    finite = np.asarray(values).astype(np.float64)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if low < high else (low, low + 1.0)


class _Plane(NamedTuple):
    centre: np.ndarray  # [D]
    axes: np.ndarray  # [D, 2], orthonormal
    variance_share: float

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """`[..., D]` to `[..., 2]`."""
        return (vectors.astype(np.float64) - self.centre) @ self.axes


def _principal_plane(vectors: np.ndarray) -> _Plane:
    """The first two principal axes of `[N, D]`; rows that are not finite are left out."""
    values = vectors.astype(np.float64)
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        values = np.zeros((1, vectors.shape[1]))
    centre = values.mean(axis=0)
    variances, axes = np.linalg.eigh((values - centre).T @ (values - centre) / len(values))
    share = variances[-2:].sum() / variances.sum() if variances.sum() > 0 else 1.0
    return _Plane(centre, axes[:, :-3:-1], float(share))


class _Series(NamedTuple):
    steps: np.ndarray
    values: np.ndarray
    lost_steps: np.ndarray


def _series(records: Sequence[Mapping[str, Any]], key: str) -> _Series:
    """The steps that have a finite value of `key`, the values, and the steps where it is not finite."""
    found = [(record["step"], record[key]) for record in records if key in record]
    steps = np.array([step for step, _ in found], np.float64)
    values = np.array([np.nan if value is None else float(value) for _, value in found], np.float64)
    finite = np.isfinite(values)
    return _Series(steps[finite], values[finite], steps[~finite])


def _colours(num: int) -> list[str]:
    cycle = (_BLUE, _ORANGE, _GREEN, _PURPLE, _INK, _RED)
    return [cycle[index % len(cycle)] for index in range(num)]


def _draw_series(axes: "Axes", series: _Series, label: str, colour: str) -> None:
    if len(series.values) < 20:
        axes.plot(series.steps, series.values, color=colour, linewidth=1.6, label=label)
        return
    axes.plot(series.steps, series.values, color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(series.steps, _running_mean(series.values), color=colour, linewidth=1.8, label=label, zorder=3)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """The mean over a window of a twentieth of the curve, shorter at its ends."""
    window = np.ones(max(3, len(values) // 20))
    return np.convolve(values, window, mode="same") / np.convolve(np.ones_like(values), window, mode="same")


def _draw_held_out(axes: "Axes", series: _Series, label: str, colour: str) -> None:
    if series.values.size:
        axes.plot(
            series.steps,
            series.values,
            color=colour,
            label=f"{label}, held out",
            linewidth=1.0,
            linestyle="--",
            marker="o",
            markersize=4.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            zorder=4,
        )


def _scale_values(axes: "Axes", values: np.ndarray) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    if not values.size:
        return
    if values.min() > 0 and values.max() > 10 * values.min():
        axes.set_yscale("log")
        if values.max() < 100 * values.min():
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    low, high = np.quantile(values, (0.005, 0.995))
    margin = 0.08 * (high - low) or max(1e-3, 0.1 * abs(low))
    axes.set_ylim(low - margin, high + margin)


def _moments(trajectory: ArrayLike, times: ArrayLike, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `wanted` evenly spaced moments, the first and the last among them, and their times.

    Images stay `[moments, N, H, W, C]`, numbers become `[moments, N]` and vectors `[moments, N, 2]`: along
    the first two principal axes of the last moment where they have more dimensions.
    """
    states, clock = np.asarray(trajectory), np.asarray(times).astype(np.float64)
    if states.ndim not in (2, 3, 5) or len(states) < 2 or not states.size:
        raise ValueError(
            f"trajectory has shape {states.shape}; expected [T + 1, N, ...] with T >= 1 "
            "and event shape [H, W, C], [D] or []"
        )
    if clock.shape != states.shape[:1]:
        raise ValueError(f"times have shape {clock.shape}; expected one a moment: {states.shape[:1]}")
    if wanted < 2:
        raise ValueError(f"moments is {wanted}; expected at least 2")
    chosen = np.unique(np.round(np.linspace(0, len(states) - 1, wanted)).astype(int))
    states, clock = states[chosen].astype(np.float64), clock[chosen]
    if states.ndim == 3 and states.shape[2] == 1:
        return states[..., 0], clock
    if states.ndim == 3 and states.shape[2] > 2:
        return _principal_plane(states[-1]).project(states), clock
    return states, clock


def _time_labels(times: np.ndarray) -> list[str]:
    if np.abs(times).max() < 10:
        return [f"{time:.2f}" for time in times]
    return [f"{time:.3g}" for time in times]


class _Scene(NamedTuple):
    """A trajectory of points or numbers as a panel at each moment."""

    draw: Callable[["Axes", int], "Artist"]
    widths: Sequence[str]
    zooms: bool


def _scene(states: np.ndarray) -> _Scene:
    return _points_scene(states) if states.ndim == 3 else _numbers_scene(states)


def _common_limits(intervals: Sequence[tuple[float, float]]) -> list[tuple[float, float]] | None:
    """One interval around all, or None where one is more than 4 times as wide as the last."""
    widths = [high - low for low, high in intervals]
    if max(widths) > _ZOOM_RATIO * widths[-1]:
        return None
    whole = (min(low for low, _ in intervals), max(high for _, high in intervals))
    return [whole] * len(intervals)


def _points_scene(states: np.ndarray) -> _Scene:
    xs, ys = ([_interval(points[:, axis], *_TRAJECTORY_LIMITS) for points in states] for axis in (0, 1))
    common_x, common_y = _common_limits(xs), _common_limits(ys)
    if common_x and common_y:
        xs, ys = common_x, common_y
    zooms = xs is not common_x
    views = [_framed(x, y, flattest=1.0) for x, y in zip(xs, ys, strict=True)]

    size = float(np.clip(1500 / states.shape[1], 1.2, 6.0))

    def draw(axes: "Axes", moment: int) -> "Artist":
        points, view = states[moment], views[moment]
        if len(points) <= _MOST_POINTS:
            return _draw_points(axes, points, view, _BLUE, size)
        density = _density(points, view, _TRAJECTORY_BINS)
        return _draw_density(axes, density, view, float(density.max()))

    widths = [_short(view.right - view.left) for view in views]
    return _Scene(draw, widths, zooms)


def _numbers_scene(states: np.ndarray) -> _Scene:
    separate = [_interval(values, *_TRAJECTORY_LIMITS) for values in states]
    common = _common_limits(separate)
    intervals = common or separate
    bins = min(_bin_count(states.shape[1]), 48)
    edges = [np.linspace(*interval, bins + 1) for interval in intervals]
    heights = [_fraction_a_unit(values, edge) for values, edge in zip(states, edges, strict=True)]
    peaks = [height.max() or 1.0 for height in heights]

    def draw(axes: "Axes", moment: int) -> "Artist":
        axes.set_xlim(*intervals[moment])
        axes.set_ylim(0, 1.08 * (max(peaks) if common else peaks[moment]))
        axes.set_box_aspect(1.0)
        return axes.stairs(heights[moment], edges[moment], fill=True, color=_BLUE, alpha=0.6)

    widths = [_short(high - low) for low, high in intervals]
    return _Scene(draw, widths, common is None)


def _short(value: float) -> str:
    """Two significant digits, without an exponent where that is short: 670, 0.12."""
    return f"{float(f'{value:.2g}'):g}"


def _scene_pictures(scene: _Scene) -> list["Image"]:
    figure = _figure(2.8, 2.8)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    _style_panel(axes)
    pictures = []
    for moment in range(len(scene.widths)):
        artist = scene.draw(axes, moment)
        pictures.append(_rendered(figure))
        artist.remove()
    return pictures
