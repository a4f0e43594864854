import matplotlib as mpl
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from experiments.figures import COLOURS, draw_curves, draw_lines, draw_points, read_curve
from experiments.statistics import Estimate
from mmm4rec.errors import DataError

CURVE = [(1.0, 0.1), (2.0, 0.3), (3.0, 0.2)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written, as objects."""
    figures = []
    save = Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def point(value, low=None, high=None):
    return Estimate(value, value - 0.01 if low is None else low, high or value + 0.01, 3)


def marks(axis):
    """The marks without a line: x, y, colour."""
    return [
        (line.get_xdata()[0], line.get_ydata()[0], line.get_color())
        for line in axis.lines
        if len(line.get_xdata()) == 1
    ]


def legend_of(figure):
    (legend,) = figure.legends
    return {
        text.get_text(): (line.get_color(), line.get_linestyle())
        for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }


def test_read_a_curve(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,val/ndcg@10\n1,5,0.25\n2,10,0.5\n")
    assert read_curve(tmp_path, "val/ndcg@10") == [(1.0, 0.25), (2.0, 0.5)]


def test_a_metric_that_was_not_recorded(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,val/ndcg@10\n1,0.25\n")
    with pytest.raises(DataError, match=r"has no 'val/recall@1', only epoch, val/ndcg@10. Next"):
        read_curve(tmp_path, "val/recall@1")


def test_a_curve_is_drawn_in_colours(tmp_path):
    draw_curves({"A": {"one": [CURVE], "other": [CURVE, CURVE]}}, "val/x", tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.width >= 500
        assert len(picture.convert("RGB").resize((64, 64)).getcolors()) > 20


def test_each_run_is_a_line_with_its_best_epoch_marked(tmp_path, drawn):
    other = [(1.0, 0.05), (2.0, 0.06)]
    panels = {"A": {"one": [CURVE, other], "two": [other]}, "B": {"two": [CURVE]}}
    draw_curves(panels, "val/ndcg@10", tmp_path / "c.png")
    (figure,) = drawn
    first, second = figure.axes
    one, two = COLOURS[:2]
    assert marks(first) == [(2, 0.3, one), (2, 0.06, one), (2, 0.06, two)]
    assert marks(second) == [(2, 0.3, two)]  # the same way has the same colour everywhere
    lines = [list(line.get_ydata()) for line in first.lines if len(line.get_ydata()) > 1]
    assert lines == [[0.1, 0.3, 0.2], [0.05, 0.06], [0.05, 0.06]]
    assert first.get_ylabel() == "validation ndcg@10"
    assert first.get_ylim()[0] == 0
    assert legend_of(figure) == {"one": (one, "-"), "two": (two, "-")}


def test_any_number_of_ways_can_be_told_apart_and_the_legend_hides_no_data(tmp_path, drawn):
    names = [f"way {at}" for at in range(20)]
    draw_curves({"A": {name: [CURVE] for name in names}}, "val/ndcg@10", tmp_path / "c.png")
    (figure,) = drawn
    looks = legend_of(figure)
    assert list(looks) == names
    assert len(set(looks.values())) == 20
    legend = figure.legends[0].get_window_extent()
    assert all(legend.y1 <= axis.get_window_extent().y0 for axis in figure.axes)


def test_a_legend_of_long_names_is_not_cut_off(tmp_path, drawn):
    names = [f"{way}, a TiSSD for each modality" for way in ("filter", "gate", "mean")]
    draw_curves({"A": {name: [CURVE] for name in names}}, "val/x", tmp_path / "c.png")
    (figure,) = drawn
    legend, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert whole.x0 <= legend.x0 < legend.x1 <= whole.x1
    assert whole.y0 <= legend.y0
    assert legend.y1 <= figure.axes[0].get_tightbbox().y0


def test_panels_wrap_and_none_is_left_empty(tmp_path, drawn):
    draw_curves({str(at): {"one": [CURVE]} for at in range(5)}, "val/x", tmp_path / "c.png")
    (figure,) = drawn
    assert [axis.get_title() for axis in figure.axes] == ["0", "1", "2", "3", "4"]
    assert len({axis.get_position().y0.round(6) for axis in figure.axes}) == 2


def test_lines_have_bands_of_their_intervals(tmp_path, drawn):
    line = [(0, point(0.1, 0.05, 0.2)), (50, point(0.3, 0.25, 0.5))]
    draw_lines({"A": {"zero": line}}, x_label="hidden, %", y_label="r", path=tmp_path / "l.png")
    (figure,) = drawn
    (axis,) = figure.axes
    assert axis.lines[0].get_xydata().tolist() == [[0, 0.1], [50, 0.3]]
    corners = {tuple(corner) for corner in axis.collections[0].get_paths()[0].vertices.tolist()}
    assert corners == {(0, 0.05), (0, 0.2), (50, 0.25), (50, 0.5)}
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("hidden, %", "r")


def test_points_have_labels_error_bars_and_a_fit(tmp_path, drawn):
    fit = [(0.0, point(0.1)), (2.0, point(0.2))]
    points = [("Office", 1.0, point(0.15, 0.05, 0.16)), ("Arts", 1.5, point(-0.2))]
    draw_points(points, x_label="x", y_label="y", path=tmp_path / "p.png", line=fit)
    draw_points(points, x_label="x", y_label="y", path=tmp_path / "q.png")
    (axis,), (plain,) = (figure.axes for figure in drawn)
    assert list(legend_of(drawn[0])) == ["Office", "Arts"]
    assert len({mark[2] for mark in marks(axis)}) == 2
    assert [mark[:2] for mark in marks(axis)] == [(1.0, 0.15), (1.5, -0.2)]
    bars = [line.get_xydata().tolist() for line in axis.lines if len(line.get_xdata()) == 2]
    assert [[1.0, 0.05], [1.0, 0.16]] in bars
    assert [[0.0, 0.1], [2.0, 0.2]] in bars
    assert (len(axis.collections), len(plain.collections)) == (1, 0)


def test_a_wide_band_does_not_flatten_the_points(tmp_path, drawn):
    wide = [(0.0, Estimate(0.1, -70.0, 70.0, 1)), (1.0, Estimate(0.2, -90.0, 90.0, 1))]
    path = tmp_path / "p.png"
    draw_points([("a", 0.5, point(0.1))], x_label="x", y_label="y", path=path, line=wide)
    bottom, top = drawn[0].axes[0].get_ylim()
    assert -0.1 < bottom < 0
    assert 0.11 < top < 0.2


@pytest.mark.parametrize("name", ["$x_{$", "_hidden", "a\nb", "<b>&"])
def test_names_from_folders_are_plain_text(tmp_path, drawn, name):
    draw_curves({name: {name: [CURVE]}}, "val/ndcg@10", tmp_path / "c.png")
    draw_points([(name, 0.0, point(1))], x_label="x", y_label="y", path=tmp_path / "p.png")
    assert list(legend_of(drawn[0])) == list(legend_of(drawn[1])) == [name]
    assert drawn[0].axes[0].get_title() == name


def test_a_picture_is_whole_or_what_it_was(tmp_path, monkeypatch):
    path = tmp_path / "c.png"
    draw_curves({"A": {"one": [CURVE]}}, "val/ndcg@10", path)
    before = path.read_bytes()
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.convert("L").getextrema()[0] < 128  # not blank

    def fail(*args, **kwargs):
        raise RuntimeError("no")

    monkeypatch.setattr(Axes, "fill_between", fail)
    with pytest.raises(RuntimeError, match="no"):
        draw_lines({"A": {"x": [(0, point(1))]}}, x_label="x", y_label="y", path=path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["c.png"]


def test_drawing_leaves_the_settings_of_matplotlib_as_they_were(tmp_path):
    before = dict(mpl.rcParams)
    draw_curves({"A": {"one": [CURVE]}}, "val/ndcg@10", tmp_path / "c.png")
    assert dict(mpl.rcParams) == before
