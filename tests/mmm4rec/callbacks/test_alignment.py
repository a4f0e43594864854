import math

import pytest
import torch
from torch import nn

from mmm4rec.callbacks.alignment import Alignment, cka_distance, cosine_distance
from mmm4rec.model import MMM4Rec

KINDS = ("cosine", "cka")


def _dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def _cosine_by_loop(xs, ys):
    distances = [
        1 - _dot(x, y) / math.sqrt(_dot(x, x) * _dot(y, y)) for x, y in zip(xs, ys, strict=True)
    ]
    return sum(distances) / len(distances)


def _hsic_by_loop(xs, ys):
    """Return the sum of the product of two centred Gram matrices: what CKA is defined by."""

    def gram(rows):
        kernel = [[_dot(a, b) for b in rows] for a in rows]
        n = len(rows)
        means = [sum(row) / n for row in kernel]
        mean = sum(means) / n
        return [[kernel[i][j] - means[i] - means[j] + mean for j in range(n)] for i in range(n)]

    return sum(_dot(a, b) for a, b in zip(gram(xs), gram(ys), strict=True))


def _cka_by_loop(xs, ys):
    return 1 - _hsic_by_loop(xs, ys) / math.sqrt(_hsic_by_loop(xs, xs) * _hsic_by_loop(ys, ys))


def test_distances_equal_their_definitions():
    generator = torch.Generator().manual_seed(0)
    x_ND, y_ND = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    xs, ys = x_ND.tolist(), y_ND.tolist()
    assert cosine_distance(x_ND, y_ND) == pytest.approx(_cosine_by_loop(xs, ys), rel=1e-12)
    assert cka_distance(x_ND, y_ND) == pytest.approx(_cka_by_loop(xs, ys), rel=1e-12)


def test_cka_does_not_see_rotation_scale_and_shift():
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    rotation_DD, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator).double())
    assert cka_distance(x_ND, 5 * x_ND @ rotation_DD - 2) == pytest.approx(0, abs=1e-12)
    assert cosine_distance(x_ND, -x_ND) == pytest.approx(2)


def test_rounding_makes_no_distance_negative():
    generator = torch.Generator().manual_seed(0)
    for x_ND in torch.randn(100, 9, 3, generator=generator):
        for distance in (cka_distance(x_ND, 3 * x_ND), cosine_distance(x_ND, 3 * x_ND)):
            assert math.copysign(1, distance) == 1
            assert distance < 1e-6


def test_what_does_not_vary_is_aligned_with_nothing():
    x_ND = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert cka_distance(x_ND, torch.ones(2, 2)) == 1.0
    assert cka_distance(torch.ones(2, 2), x_ND) == 1.0


class Module(nn.Module):
    """As much of a LightningModule as a callback sees."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.logged = {}

    def log(self, name, value, **options):
        assert options == {"sync_dist": True}
        self.logged[name] = value


def _validate(callback, module, batches):
    for index, batch in enumerate(batches):
        callback.on_validation_batch_start(None, module, batch, index)
        module.model(batch)
        callback.on_validation_batch_end(None, module, None, batch, index)
    callback.on_validation_epoch_end(None, module)


@pytest.fixture
def batches(tiny_config, tiny_data):
    config = tiny_config("data.eval_batch_size=20")
    return list(tiny_data(config).val_dataloader())


def test_the_first_batch_is_measured_at_real_positions_of_every_layer(
    tiny_config, tiny_catalogue, batches
):
    model = MMM4Rec(tiny_config("model.num_layers=2").model, tiny_catalogue()).eval()
    module, outputs = Module(model), []
    for layer in model.layers:
        layer.ti_ssd.register_forward_hook(lambda *call: outputs.append(call[-1][0].double()))
    _validate(Alignment(), module, batches)
    assert list(module.logged) == [
        f"watch/alignment/layer{n}/text-image/{kind}" for n in (0, 1) for kind in KINDS
    ]
    for layer in (0, 1):
        real = [
            (row, place)
            for row, length in enumerate(batches[0].lengths_B.tolist())
            for place in range(length)
        ]
        text, image = (
            [outputs[layer][modality, row, place].tolist() for row, place in real]
            for modality in (0, 1)
        )
        found = [module.logged[f"watch/alignment/layer{layer}/text-image/{k}"] for k in KINDS]
        expected = [_cosine_by_loop(text, image), _cka_by_loop(text, image)]
        assert found == pytest.approx(expected, rel=1e-9)


def test_one_modality_has_nothing_to_be_aligned_with(tiny_config, tiny_catalogue, batches):
    catalogue = tiny_catalogue()
    del catalogue.features["image"]
    module = Module(MMM4Rec(tiny_config().model, catalogue).eval())
    _validate(Alignment(), module, batches)
    assert module.logged == {}
