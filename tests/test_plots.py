import errno
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from genjax import plots
from genjax.errors import UserError

RED, GREY = (207, 34, 46), (128, 128, 128)


@pytest.fixture
def figures(monkeypatch):
    """The Matplotlib figures that are drawn, to be looked into."""
    seen = []
    render = plots._rendered
    monkeypatch.setattr(plots, "_rendered", lambda figure: seen.append(figure) or render(figure))
    return seen


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def opened(path):
    from PIL import Image

    return Image.open(path)


def pixels(path):
    return np.asarray(opened(path).convert("RGB"))


def mixture_log_density(x):
    def normal(mean, deviation):
        return jnp.exp(-0.5 * ((x[:, 0] - mean) / deviation) ** 2) / (deviation * jnp.sqrt(2 * jnp.pi))

    return jnp.log(0.3 * normal(-2, 0.5) + 0.7 * normal(2, 0.7))


def mixture_samples(rng, num):
    first = rng.random(num) < 0.3
    return np.where(first, rng.normal(-2, 0.5, num), rng.normal(2, 0.7, num))


def straight_trajectory(rng, data, steps=20, noise_scale=1.0):
    """`[steps + 1, N, ...]` on straight lines from noise to `data`, and its times."""
    times = np.linspace(0, 1, steps + 1)
    t = times.reshape(-1, *[1] * data.ndim)
    return (1 - t) * noise_scale * rng.normal(size=data.shape)[None] + t * data[None], times


# image_grid


@pytest.mark.parametrize(
    ("shape", "highest", "columns", "scale"),
    [
        ((64, 8, 8, 1), 16, 8, 7),
        ((144, 8, 8, 1), 16, 12, 7),
        ((10, 8, 8, 1), 16, 4, 15),
        ((25, 28, 28, 1), 255, 5, 3),
        ((6, 32, 32, 3), 1, 3, 5),
        ((8, 8, 16, 1), 1, 2, 15),
        ((2, 100, 100, 3), 255, 2, 2),
        ((1, 600, 600, 1), 255, 1, 1),
    ],
)
def test_grid_shows_every_pixel_of_every_image_enlarged_by_one_whole_factor(
    tmp_path, rng, shape, highest, columns, scale
):
    images = rng.integers(0, highest + 1, shape)
    plots.image_grid(tmp_path / "grid.png", images, value_range=(0, highest))
    grid = pixels(tmp_path / "grid.png")

    num, height, width, _ = shape
    rows = -(-num // columns)
    assert grid.shape == (2 + rows * (height * scale + 2), 2 + columns * (width * scale + 2), 3)
    seen = np.zeros(grid.shape[:2], bool)
    for index, image in enumerate(images):
        top = 2 + (index // columns) * (height * scale + 2)
        left = 2 + (index % columns) * (width * scale + 2)
        cell = (slice(top, top + height * scale), slice(left, left + width * scale))
        expected = np.round(np.broadcast_to(image, (height, width, 3)) / highest * 255)
        np.testing.assert_array_equal(grid[cell], np.kron(expected, np.ones((scale, scale, 1))))
        seen[cell] = True
    assert (grid[~seen] == GREY).all()


def test_grid_clips_to_the_range_and_shows_pixels_that_are_not_finite_in_red(tmp_path):
    image = np.array([[-5.0, 0.0, 8.0], [16.0, 99.0, np.nan], [np.inf, -np.inf, 4.0]])[None, :, :, None]
    plots.image_grid(tmp_path / "grid.png", jnp.asarray(image), value_range=(0, 16))
    centres = pixels(tmp_path / "grid.png")[2:-2, 2:-2][80::160, 80::160]
    grey = [[0, 0, 128], [255, 255, None], [None, None, 64]]
    expected = [[RED if value is None else (value,) * 3 for value in row] for row in grey]
    np.testing.assert_array_equal(centres, expected)


def test_row_labels_stand_left_of_an_unchanged_grid(tmp_path, rng):
    images = rng.integers(0, 17, (12, 8, 8, 1))
    plots.image_grid(tmp_path / "plain.png", images, value_range=(0, 16), columns=4)
    plots.image_grid(
        tmp_path / "labelled.png", images, value_range=(0, 16), columns=4, row_labels=["3", "5", "class 8"]
    )
    plain, labelled = pixels(tmp_path / "plain.png"), pixels(tmp_path / "labelled.png")
    height, width, _ = plain.shape
    np.testing.assert_array_equal(labelled[:, -width:], plain)
    margin = labelled[:, :-width]
    assert margin.shape[1] > 30
    dark_rows = np.flatnonzero((margin < 100).all(axis=-1).any(axis=1))
    cells = np.unique(dark_rows // (height // 3))
    np.testing.assert_array_equal(cells, [0, 1, 2])
    assert (margin[:, [0, -1]] == 255).all(), "a label touches the border"


@pytest.mark.parametrize(
    ("num", "columns"), [(1, 1), (2, 2), (3, 2), (4, 2), (7, 3), (10, 4), (32, 8), (100, 10), (1000, 40)]
)
def test_grid_is_about_square(num, columns):
    assert plots._near_square_columns(num, 1.0) == columns


@pytest.mark.parametrize(
    ("images", "options"),
    [
        (np.zeros((4, 8, 8)), {}),
        (np.zeros((4, 8, 8, 2)), {}),
        (np.zeros((0, 8, 8, 1)), {}),
        (np.zeros((4, 8, 8, 1)), {"columns": 0}),
        (np.zeros((4, 8, 8, 1)), {"columns": 2, "row_labels": ["only one"]}),
        (np.zeros((4, 8, 8, 1)), {"value_range": (1, 1)}),
    ],
)
def test_grid_refuses_what_does_not_fit(tmp_path, images, options):
    with pytest.raises(ValueError, match=r"shape|columns|label|range"):
        plots.image_grid(tmp_path / "grid.png", images, **{"value_range": (0, 1), **options})
    assert not list(tmp_path.iterdir())


# scatter


def test_scatter_panels_share_limits_which_hold_the_data_and_the_rest_is_counted(tmp_path, rng, figures):
    data = rng.uniform(-1, 1, (2000, 2))
    samples = rng.uniform(-1, 1, (1000, 2))
    samples[:7] = 50.0
    samples[7:9] = np.nan
    plots.scatter(tmp_path / "points.png", jnp.asarray(samples), data)
    left, right = figures[0].axes
    assert left.get_xlim() == right.get_xlim()
    assert left.get_ylim() == right.get_ylim()
    assert -2 < left.get_xlim()[0] < -1.2
    assert 1.2 < left.get_xlim()[1] < 2
    assert right.get_xlabel() == "9 of 1,000 outside"
    assert not left.get_xlabel().strip()
    assert "1,000 of 2,000" in left.get_title()
    assert [len(axes.collections[0].get_offsets()) for axes in (left, right)] == [1000, 991]
    assert opened(tmp_path / "points.png").width == 1200


def test_one_scale_on_both_axes(tmp_path, rng, figures):
    plots.scatter(tmp_path / "points.png", rng.uniform(-1, 1, (500, 2)) * (3.0, 1.0))
    (axes,) = figures[0].axes
    box = axes.get_window_extent()
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert (right - left) / box.width == pytest.approx((top - bottom) / box.height, rel=0.01)


def test_many_points_become_densities_on_one_colour_scale(tmp_path, rng, figures):
    data, samples = rng.normal(size=(20_000, 2)), 2 * rng.normal(size=(6000, 2))
    plots.scatter(tmp_path / "density.png", samples, data)
    left, right = (axes.images[0] for axes in figures[0].axes)
    assert left.get_clim() == right.get_clim() == (0, left.get_array().max())
    x_min, x_max, y_min, y_max = right.get_extent()
    inside = ((samples > (x_min, y_min)) & (samples < (x_max, y_max))).all(axis=1).mean()
    assert 0.8 < inside < 1
    cell_area = (x_max - x_min) * (y_max - y_min) / right.get_array().size
    assert right.get_array().sum() * cell_area == pytest.approx(inside)
    peak_of_data = 1 / (2 * np.pi)
    assert left.get_array().max() == pytest.approx(peak_of_data, rel=0.5)


def test_density_is_not_transposed_or_flipped(tmp_path, rng, figures):
    points = rng.normal(size=(6000, 2)) * 0.1 + (3.0, -1.0)
    points[:100] = (-3.0, 3.0)
    plots.scatter(tmp_path / "density.png", points)
    density = figures[0].axes[0].images[0].get_array()
    row, column = np.unravel_index(density.argmax(), density.shape)
    assert row < density.shape[0] / 2, "the mass at y = -1 is in the lower half: row 0 is at the bottom"
    assert column > density.shape[1] / 2, "the mass at x = 3 is in the right half"
    assert figures[0].axes[0].images[0].origin == "lower"


@pytest.mark.parametrize("bad", [np.zeros((5, 3)), np.zeros(5), np.zeros((0, 2)), np.zeros((5, 2, 1))])
def test_scatter_refuses_other_shapes(tmp_path, bad):
    with pytest.raises(ValueError, match="shape"):
        plots.scatter(tmp_path / "points.png", bad)
    with pytest.raises(ValueError, match="shape"):
        plots.scatter(tmp_path / "points.png", np.zeros((5, 2)), bad)
    assert not list(tmp_path.iterdir())


# histogram


def test_histogram_has_the_area_of_the_samples_inside_beside_the_true_density(tmp_path, rng, figures):
    samples = mixture_samples(rng, 5000)[:, None]
    samples[:500] = 1e6
    plots.histogram(tmp_path / "h.png", samples, log_density=mixture_log_density, data=mixture_samples(rng, 4000))
    (axes,) = figures[0].axes
    heights, edges, _ = axes.patches[0].get_data()
    assert np.sum(heights * np.diff(edges)) == pytest.approx(0.9, abs=0.005)
    x, density = axes.lines[0].get_data()
    assert np.trapezoid(density, x) == pytest.approx(1.0, abs=1e-3)
    centres = (edges[1:] + edges[:-1]) / 2
    assert np.abs(heights / 0.9 - np.interp(centres, x, density)).max() < 0.08
    assert "of 5,000 samples outside" in axes.get_xlabel()


def test_histogram_shows_a_mode_that_no_sample_found(tmp_path, rng, figures):
    plots.histogram(tmp_path / "h.png", rng.normal(2, 0.7, 1000), log_density=mixture_log_density)
    low, high = figures[0].axes[0].get_xlim()
    assert low < -3.2
    assert high > 3.5


def test_histogram_against_the_outline_of_the_data(tmp_path, rng, figures):
    plots.histogram(tmp_path / "h.png", rng.normal(size=300), data=rng.normal(size=(400, 1)))
    bars, outline = figures[0].axes[0].patches
    np.testing.assert_array_equal(bars.get_data().edges, outline.get_data().edges)
    legend = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert legend == ["samples (300)", "data (400)"]


@pytest.mark.parametrize("bad", [np.zeros((5, 2)), np.zeros(0), np.float32(1.0)])
def test_histogram_refuses_other_shapes(tmp_path, bad):
    with pytest.raises(ValueError, match="shape"):
        plots.histogram(tmp_path / "h.png", bad)
    with pytest.raises(ValueError, match="log_density returned shape"):
        plots.histogram(tmp_path / "h.png", np.arange(5.0), log_density=lambda x: x)
    assert not list(tmp_path.iterdir())


# samples_figure


def test_images_become_a_grid_of_at_most_256_in_the_range_of_the_data(tmp_path, rng):
    samples = rng.integers(3, 12, (300, 8, 8, 1))
    data = rng.integers(0, 17, (50, 8, 8, 1))
    plots.samples_figure(tmp_path / "a.png", samples, data=data)
    plots.image_grid(tmp_path / "b.png", samples[:256], value_range=(0, 16))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("shape", [(200,), (200, 1)])
def test_numbers_become_a_histogram(tmp_path, rng, figures, shape):
    plots.samples_figure(tmp_path / "a.png", rng.normal(size=shape), log_density=mixture_log_density)
    assert figures[0].axes[0].get_ylabel() == "density"


def test_pairs_become_a_scatter(tmp_path, rng, figures):
    data, samples = rng.uniform(-1, 1, (2, 100, 2))
    plots.samples_figure(tmp_path / "a.png", samples, data=data)
    shown = [axes.collections[0].get_offsets() for axes in figures[0].axes]
    np.testing.assert_array_equal(shown, [data, samples])


def test_vectors_are_shown_along_the_principal_axes_of_the_data(tmp_path, rng, figures):
    plane = np.linalg.qr(rng.normal(size=(10, 2)))[0]
    data = (rng.normal(size=(500, 2)) * (3.0, 1.0)) @ plane.T + 7.0
    off_plane = np.linalg.qr(np.c_[plane, rng.normal(size=(10, 1))])[0][:, 2]
    plots.samples_figure(tmp_path / "a.png", data + 5 * off_plane, data=data)
    left, right = (axes.collections[0].get_offsets() for axes in figures[0].axes)
    np.testing.assert_allclose(left, right, atol=1e-9)
    assert left[:, 0].std() > 2 * left[:, 1].std()
    distances = [np.linalg.norm(values[1:] - values[:-1], axis=1) for values in (data, left)]
    np.testing.assert_allclose(*distances)
    assert "100% of the variance in 10 dimensions" in figures[0].get_suptitle()


def test_samples_figure_refuses_other_shapes(tmp_path):
    for samples, data in [
        (np.zeros((5, 4, 4)), None),
        (np.zeros((5, 4, 4, 2)), None),
        (np.zeros(()), None),
        (np.zeros((5, 2)), np.zeros((5, 3))),
    ]:
        with pytest.raises(ValueError, match="shape"):
            plots.samples_figure(tmp_path / "a.png", samples, data=data)
    assert not list(tmp_path.iterdir())


# loss_curve


def records_of(values, **extra):
    return [{"step": 10 * (i + 1), "loss": value, **extra} for i, value in enumerate(values)]


def test_loss_curve_has_raw_values_their_running_mean_and_held_out_points(tmp_path, rng, figures):
    values = 2.0 + rng.normal(size=200)
    records = records_of(values)
    records.insert(100, {"step": 1000, "held_out_loss": 2.5})
    records.append({"step": 2000, "held_out_loss": 2.25})
    plots.loss_curve(tmp_path / "loss.png", records)
    (axes,) = figures[0].axes
    raw, smooth, held_out = axes.lines
    np.testing.assert_array_equal(raw.get_xydata(), np.c_[np.arange(10, 2001, 10), values])
    assert smooth.get_ydata().std() < values.std() / 2
    assert smooth.get_ydata().mean() == pytest.approx(values.mean(), abs=0.05)
    np.testing.assert_array_equal(held_out.get_xydata(), [[1000, 2.5], [2000, 2.25]])
    assert held_out.get_marker() == "o"
    assert axes.get_yscale() == "linear", "values below 0"


@pytest.mark.parametrize(("values", "scale"), [([1.0, 0.2], "linear"), ([1.0, 0.05], "log"), ([9.0, 0.0], "linear")])
def test_loss_is_on_a_log_axis_where_positive_over_more_than_a_decade(tmp_path, figures, values, scale):
    plots.loss_curve(tmp_path / "loss.png", records_of(values))
    assert figures[0].axes[0].get_yscale() == scale


def test_learning_rate_has_a_panel_and_lost_values_are_marked(tmp_path, figures):
    records = records_of([1.0, 0.9, None, 0.8, float("nan")], learning_rate=1e-3)
    plots.loss_curve(tmp_path / "loss.png", records)
    loss, rate = figures[0].axes
    np.testing.assert_array_equal(rate.lines[0].get_ydata(), np.full(5, 1e-3))
    marks = [line for line in loss.lines if line.get_label() == "not finite"]
    np.testing.assert_array_equal(marks[0].get_xdata(), [30, 50])


def test_several_losses_each_have_a_curve(tmp_path, figures):
    records = [{"step": 1, "critic_loss": -1.0}, {"step": 2, "generator_loss": 0.5, "critic_loss": -2.0}]
    plots.loss_curve(tmp_path / "loss.png", records, keys=("critic_loss", "generator_loss"))
    legend = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert legend == ["critic loss", "generator loss"]
    assert len({line.get_color() for line in figures[0].axes[0].lines}) == 2


def test_a_loss_that_was_never_finite_still_gives_a_picture_and_none_at_all_is_refused(tmp_path):
    plots.loss_curve(tmp_path / "nan.png", records_of([None, None]))
    assert opened(tmp_path / "nan.png").width == 1200
    for records in ([], [{"step": 1, "other": 1.0}]):
        with pytest.raises(ValueError, match="has loss"):
            plots.loss_curve(tmp_path / "loss.png", records)
    assert [file.name for file in tmp_path.iterdir()] == ["nan.png"]


# trajectories


def test_strip_of_images_has_an_example_a_row_and_a_moment_a_column(tmp_path, rng):
    images = rng.integers(0, 17, (9, 8, 8, 1)).astype(float)
    trajectory, times = straight_trajectory(rng, images)
    plots.trajectory_strip(tmp_path / "strip.png", trajectory, times, value_range=(0, 16), examples=3)
    strip = pixels(tmp_path / "strip.png")
    scale, cell = 12, 8 * 12 + 2
    assert strip.shape[1] == 2 + 8 * cell
    margin = strip.shape[0] - (2 + 3 * cell)
    assert margin > 10
    for row in range(3):
        for column, moment in [(0, 0), (7, 20)]:
            top, left = margin + 2 + row * cell, 2 + column * cell
            expected = np.round(np.clip(trajectory[moment, row, :, :, 0] / 16, 0, 1) * 255)
            shown = strip[top + scale // 2 : top + cell - 2 : scale, left + scale // 2 : left + cell - 2 : scale]
            np.testing.assert_array_equal(shown[..., 0], expected)


def test_strip_of_points_runs_from_the_first_to_the_last_moment_with_one_set_of_limits(tmp_path, rng, figures):
    data = rng.uniform(-1, 1, (500, 2))
    trajectory, times = straight_trajectory(rng, data)
    plots.trajectory_strip(tmp_path / "strip.png", trajectory, times)
    panels = figures[0].axes
    assert [axes.get_title() for axes in panels][:: len(panels) - 1] == ["t = 0.00", "1.00"]
    assert len(panels) == 8
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in panels}) == 1
    np.testing.assert_allclose(panels[-1].collections[0].get_offsets(), data)


def test_strip_of_few_moments_shows_them_all(tmp_path, rng, figures):
    trajectory, times = straight_trajectory(rng, rng.normal(size=(50, 2)), steps=2)
    plots.trajectory_strip(tmp_path / "strip.png", trajectory, 80 * (1 - times))
    assert [axes.get_title() for axes in figures[0].axes] == ["t = 80", "40", "0"]


@pytest.mark.parametrize("shape", [(500, 2), (500,)])
def test_noise_much_wider_than_the_data_gets_limits_of_its_own_which_are_told(tmp_path, rng, figures, shape):
    trajectory, times = straight_trajectory(rng, rng.uniform(-1, 1, shape), noise_scale=80.0)
    plots.trajectory_strip(tmp_path / "strip.png", trajectory, times)
    panels = figures[0].axes
    widths = [np.ptp(axes.get_xlim()) for axes in panels]
    assert widths[0] > 300
    assert 2 < widths[-1] < 3
    told = [float(axes.get_xlabel().removeprefix("width ")) for axes in panels]
    np.testing.assert_allclose(told, widths, rtol=0.06)


@pytest.mark.parametrize("shape", [(400,), (400, 1), (6000, 2), (400, 5)])
def test_trajectories_of_numbers_clouds_and_vectors(tmp_path, rng, figures, shape):
    trajectory, times = straight_trajectory(rng, rng.normal(size=shape), steps=4)
    plots.trajectory_strip(tmp_path / "strip.png", jnp.asarray(trajectory), jnp.asarray(times))
    plots.trajectory_gif(tmp_path / "strip.gif", jnp.asarray(trajectory), jnp.asarray(times))
    assert opened(tmp_path / "strip.png").width == 1200
    assert opened(tmp_path / "strip.gif").n_frames == 5
    if len(shape) == 1 or shape[1] == 1:
        heights, edges, _ = figures[0].axes[-1].patches[0].get_data()
        assert np.sum(heights * np.diff(edges)) == pytest.approx(1.0, abs=0.02)


def test_vectors_move_in_the_principal_plane_of_the_last_moment(tmp_path, rng, figures):
    last = np.c_[np.zeros((300, 3)), rng.uniform(-1, 1, (300, 2)) * (2.0, 1.0)]
    trajectory = np.stack([last + np.array([9.0, 9.0, 9.0, 0.0, 0.0]), last])
    plots.trajectory_strip(tmp_path / "strip.png", trajectory, [0.0, 1.0])
    first, final = (axes.collections[0].get_offsets() for axes in figures[0].axes)
    np.testing.assert_allclose(first, final, atol=1e-9)
    np.testing.assert_allclose(np.sort(final.std(axis=0)), np.sort(last[:, 3:].std(axis=0)), rtol=0.01)


def frames_of(path):
    gif = opened(path)
    for index in range(gif.n_frames):
        gif.seek(index)
        yield np.asarray(gif.convert("RGB")), gif.info["duration"], gif.info["loop"]


def test_gif_of_images_ends_with_the_samples_held_and_lasts_three_seconds(tmp_path, rng):
    images = rng.integers(0, 17, (12, 8, 8, 1)).astype(float)
    trajectory, times = straight_trajectory(rng, images, steps=100)
    plots.trajectory_gif(tmp_path / "a.gif", trajectory, times, value_range=(0, 16), examples=9)
    frames, delays, loops = zip(*frames_of(tmp_path / "a.gif"), strict=True)
    assert len(frames) == 40
    assert sum(delays) == 3000
    assert delays[-1] == delays[0] + 1000
    assert set(loops) == {0}
    scale = 15
    grid = frames[-1][-(2 + 3 * (8 * scale + 2)) :]
    for index in range(9):
        top, left = (2 + place * (8 * scale + 2) for place in divmod(index, 3))
        middle = scale // 2
        shown = grid[top + middle : top + 8 * scale : scale, left + middle : left + 8 * scale : scale, 0]
        np.testing.assert_allclose(shown, images[index, :, :, 0] / 16 * 255, atol=4.7)


def test_gif_of_points_has_fixed_limits_and_a_white_ground(tmp_path, rng):
    still = rng.normal(size=(300, 2))
    trajectory = np.stack([still, still + 0.5, still])
    plots.trajectory_gif(tmp_path / "a.gif", trajectory, [0.0, 0.5, 1.0])
    first, moved, last = (frame for frame, *_ in frames_of(tmp_path / "a.gif"))
    below_caption = slice(30, None)
    np.testing.assert_array_equal(first[below_caption], last[below_caption])
    assert (first[below_caption] != moved[below_caption]).any()
    values, counts = np.unique(first.reshape(-1, 3), axis=0, return_counts=True)
    np.testing.assert_array_equal(values[counts.argmax()], [255, 255, 255])


@pytest.mark.parametrize("write", [plots.trajectory_strip, plots.trajectory_gif])
def test_trajectories_refuse_what_does_not_fit(tmp_path, write):
    for trajectory, times in [
        (np.zeros((5, 10, 2)), np.zeros(4)),
        (np.zeros((1, 10, 2)), np.zeros(1)),
        (np.zeros((5, 10, 8, 8)), np.zeros(5)),
        (np.zeros((5, 0, 2)), np.zeros(5)),
        (np.zeros((5, 10, 8, 8, 2)), np.zeros(5)),
    ]:
        with pytest.raises(ValueError, match="shape"):
            write(tmp_path / "a", trajectory, times)
    with pytest.raises(ValueError, match="moments"):
        plots.trajectory_strip(tmp_path / "a", np.zeros((5, 10, 2)), np.zeros(5), moments=1)
    assert not list(tmp_path.iterdir())


# all of them


def draw_all(directory, rng):
    """One figure of every kind, with whatever strains its layout."""
    images = rng.integers(0, 17, (12, 8, 8, 1)).astype(float)
    points = rng.normal(size=(200, 2)) * 1234.5
    plots.image_grid(directory / "grid.png", images, value_range=(0, 16))
    plots.scatter(directory / "scatter.png", points * 3, points, title="a title")
    plots.histogram(directory / "histogram.png", rng.normal(size=100) * 1e-4, title="a title")
    records = records_of(np.geomspace(5, 1e-3, 50), held_out_loss=0.5, learning_rate=1.2345e-5)
    records[7]["loss"] = None
    plots.loss_curve(directory / "loss.png", records, title="a title")
    trajectory, times = straight_trajectory(rng, points, steps=3, noise_scale=1e5)
    plots.trajectory_strip(directory / "strip.png", trajectory, times)
    plots.trajectory_gif(directory / "points.gif", trajectory, times)


def test_nothing_is_cut_off_at_the_border(tmp_path, rng, figures):
    draw_all(tmp_path, rng)
    assert len(figures) == 4 + len([*frames_of(tmp_path / "points.gif")])
    for name in ("scatter", "histogram", "loss", "strip"):
        picture = pixels(tmp_path / f"{name}.png")
        for edge in (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]):
            assert (edge == 255).all(), name


def test_the_same_arrays_give_the_same_files_whatever_the_user_set_in_matplotlib(tmp_path):
    import matplotlib

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    draw_all(tmp_path / "a", np.random.default_rng(0))
    with matplotlib.rc_context({"savefig.bbox": "tight", "savefig.dpi": 40, "figure.dpi": 40}):
        draw_all(tmp_path / "b", np.random.default_rng(0))
    for first in (tmp_path / "a").iterdir():
        assert first.read_bytes() == (tmp_path / "b" / first.name).read_bytes(), first.name


def test_nothing_global_is_imported_or_changed(tmp_path):
    script = """
import sys
from genjax import plots
assert "matplotlib" not in sys.modules, "imported with genjax.plots"
assert "PIL" not in sys.modules, "imported with genjax.plots"
import matplotlib

def settings():  # reading "backend" would import pyplot
    params = {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}
    return params, set(matplotlib.colormaps)

before = settings()
import pathlib, numpy
sys.path.insert(0, sys.argv[1])
from test_plots import draw_all
draw_all(pathlib.Path(sys.argv[2]), numpy.random.default_rng(0))
assert settings() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    here = __file__.rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, "-c", script, here, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def write_each(path, rng):
    points = rng.normal(size=(20, 2))
    trajectory, times = straight_trajectory(rng, points, steps=2)
    yield lambda: plots.image_grid(path, np.zeros((2, 8, 8, 1)), value_range=(0, 1))
    yield lambda: plots.samples_figure(path, points)
    yield lambda: plots.loss_curve(path, records_of([1.0, 2.0]))
    yield lambda: plots.trajectory_strip(path, trajectory, times)
    yield lambda: plots.trajectory_gif(path, trajectory, times)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, rng, monkeypatch):
    from PIL.Image import Image

    def half_written(self, file, **_):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "figure"
    path.write_bytes(b"old")
    monkeypatch.setattr(Image, "save", half_written)
    for write in write_each(path, rng):
        with pytest.raises(UserError, match=r"cannot write .*figure: No space left") as caught:
            write()
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == b"old"
        assert [file.name for file in tmp_path.iterdir()] == ["figure"]


def test_a_directory_that_is_not_there_is_one_line(tmp_path, rng):
    for write in write_each(tmp_path / "absent" / "figure", rng):
        with pytest.raises(UserError, match=r"cannot write .*: No such file or directory"):
            write()


# image_pairs, curves


def test_pairs_stand_above_each_other_and_the_rest_is_white(tmp_path):
    above, below = np.zeros((3, 8, 8, 1)), np.full((3, 8, 8, 1), 1.0)
    below[2] = 0.5
    plots.image_pairs(tmp_path / "pairs.png", above, below, value_range=(0, 1), columns=2)
    picture = pixels(tmp_path / "pairs.png")[..., 0]
    height, width = (side // parts for side, parts in zip(picture.shape, (4, 2), strict=True))
    cells = picture[height // 2 :: height, width // 2 :: width]
    np.testing.assert_array_equal(cells, [[0, 0], [255, 255], [0, 255], [128, 255]])
    with pytest.raises(ValueError, match="one shape"):
        plots.image_pairs(tmp_path / "pairs.png", above, below[:2], value_range=(0, 1), columns=2)


def test_curves_are_drawn_in_two_colours_over_the_data(tmp_path, figures, rng):
    families = rng.normal(size=(2, 5, 30, 2))
    plots.curves(tmp_path / "curves.png", families, data=rng.normal(size=(100, 2)), names=("one", "other"))
    (axes,) = figures[0].axes
    assert len(axes.lines) == 10
    np.testing.assert_array_equal(axes.lines[7].get_xydata(), families[1, 2])
    assert len({line.get_color() for line in axes.lines}) == 2
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "other"]
    with pytest.raises(ValueError, match="expected"):
        plots.curves(tmp_path / "curves.png", families[..., :1])


def test_curves_of_more_dimensions_are_seen_along_the_principal_axes_of_the_data(tmp_path, figures, rng):
    families = np.zeros((2, 3, 10, 3))
    families[..., 2] = np.linspace(-1, 1, 10)[None, None]
    plots.curves(tmp_path / "curves.png", families, data=rng.normal(size=(100, 3)) * np.array([0.01, 1, 5]))
    horizontal = figures[0].axes[0].lines[0].get_xdata()
    assert np.ptp(horizontal) == pytest.approx(2, abs=0.1)
