from PIL import Image

from experiments.statistics import Comparison
from experiments.studies.effects import draw_effects


def test_more_rows_make_a_taller_picture(tmp_path):
    heights = []
    for count in (1, 9):
        effects = {f"field {n}=$1": Comparison(0.01 * n, -0.01, 0.02, 0.5) for n in range(count)}
        path = tmp_path / f"{count}.png"
        draw_effects({"one": effects, "other": dict(list(effects.items())[:1])}, "change", path)
        with Image.open(path) as picture:
            assert len(picture.convert("RGB").resize((64, 64)).getcolors(4096)) > 10
            heights.append(picture.height)
    assert heights[1] > 2 * heights[0]
