from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmm4rec.callbacks.vitality import Pulse, Vitality, parameter_groups, take_pulses
from mmm4rec.model import MMM4Rec
from mmm4rec.runner import fit


def test_the_groups_of_the_model(tiny_config, tiny_catalogue):
    model = MMM4Rec(tiny_config("model.num_layers=2").model, tiny_catalogue())
    groups = parameter_groups(model)
    inside = ("ti_ssd", "norms", "time", "feed_forward", "filter", "co_ti_ssd")
    assert set(groups) == {
        "item_encoder",
        "item_bias",
        "norms",
        *(f"layer{n}/{kind}" for n in (0, 1) for kind in inside),
    }
    listed = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(listed) == sorted(map(id, model.parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_group = {group: {names[id(p)] for p in found} for group, found in groups.items()}
    assert by_group["item_bias"] == {"item_encoder.item_bias.text", "item_encoder.item_bias.image"}
    assert "layers.1.ti_ssd.time_scale.fc1.weight" in by_group["layer1/time"]
    assert "layers.0.fusions.image.co_ssd.ssd.norm.weight" in by_group["layer0/norms"]
    assert "layers.0.fusions.image.co_ssd.ssd.A_log" in by_group["layer0/co_ti_ssd"]
    assert "layers.0.fusions.image.filter.query_map.real.bias" in by_group["layer0/filter"]
    assert "item_encoder.modalities.image.missing" in by_group["item_encoder"]


def test_another_model_is_grouped_by_the_names_of_its_parts():
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "b": nn.Tanh()})
    assert {name: len(found) for name, found in parameter_groups(model).items()} == {"a": 4}


@pytest.fixture
def line():
    """y = 3 x1 + 4 x2 + 12 with the gradient of (y - 20)^2 / 2 at x = (1, 2)."""
    model = nn.ModuleDict({"line": nn.Linear(2, 1).double()})
    with torch.no_grad():
        model["line"].weight.copy_(torch.tensor([[3.0, 4.0]]))
        model["line"].bias.fill_(12.0)
    error = model["line"](torch.tensor([[1.0, 2.0]]).double()) - 20  # 3
    (error.square() / 2).sum().backward()
    return model


def test_a_pulse_by_hand(line):
    decay = {line["line"].weight: 0.5, line["line"].bias: 0.25}
    (pulse,) = take_pulses(line, decay).values()
    # Gradient 3 (1, 2, 1); decay (1.5, 2, 3).
    assert pulse == pytest.approx((3 * 6**0.5, 13.0, (1.5**2 + 2**2 + 3**2) ** 0.5))
    assert take_pulses(line, {line["line"].weight: 0.5})["line"].decay == 2.5
    line.zero_grad()
    assert take_pulses(line, {})["line"] == Pulse(0.0, 13.0, 0.0)


class Watched:
    """Take Vitality through epochs of two batches on the line of the fixture."""

    def __init__(self, model, weight_decay):
        self.lines, self.logged = [], {}
        self.model = model
        self.trainer = SimpleNamespace(num_training_batches=2)
        self.module = SimpleNamespace(
            get_submodule={"model": model}.__getitem__,
            log=lambda name, value, **_: self.logged.update({name: value}),
        )
        self.optimizer = torch.optim.NAdam(model.parameters(), weight_decay=weight_decay)
        self.callback = Vitality(self.lines.append)
        self.callback.on_train_start(self.trainer, self.module)

    def epoch(self, gradient_scale=1.0, weight_scale=1.0):
        for index in range(2):
            self.callback.on_train_batch_start(self.trainer, self.module, None, index)
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.grad.mul_(gradient_scale if index else 1)
                    parameter.mul_(weight_scale if index else 1)
            self.callback.on_before_optimizer_step(self.trainer, self.module, self.optimizer)
        self.callback.on_train_epoch_end(self.trainer, self.module)


def test_the_last_step_of_an_epoch_is_measured(line):
    watched = Watched(line, weight_decay=0.5)
    watched.epoch(gradient_scale=2.0, weight_scale=0.5)
    assert watched.logged == pytest.approx(
        {
            "watch/gradient/line": 6 * 6**0.5,
            "watch/weight/line": 0.5,
            "watch/pull/line": 6 * 6**0.5 / 3.25,
        }
    )
    assert watched.lines == []


def test_without_weight_decay_there_is_no_pull(line):
    watched = Watched(line, weight_decay=0.0)
    watched.epoch()
    assert set(watched.logged) == {"watch/gradient/line", "watch/weight/line"}


NEXT = ". Next: --set optimizer.weight_decay=0, or --set optimizer.decayed_parameters=weights"


def test_a_group_that_only_its_decay_moves_is_named_once_after_three_epochs(line):
    watched = Watched(line, weight_decay=0.5)  # decay 6.5, gradient 7.35
    watched.epoch(gradient_scale=0.006 * 6.5 / (3 * 6**0.5))
    watched.epoch()
    assert watched.lines == []
    state = watched.callback.state_dict()
    watched.callback = Vitality(watched.lines.append)
    watched.callback.load_state_dict(state)  # as after an interruption
    watched.epoch()
    reason = "its gradient is 6.0e-03 of its weight decay, 3 epochs in a row"
    assert watched.lines == [f"warning: line is dying: {reason}{NEXT}"]
    watched.epoch()
    assert len(watched.lines) == 1


def test_an_epoch_with_a_gradient_starts_the_count_anew(line):
    watched = Watched(line, weight_decay=0.5)
    for scale in (1e-3, 1.0, 1e3, 1e-3, 1.0):
        watched.epoch(gradient_scale=scale)
    assert watched.lines == []


def test_a_group_that_shrank_away_is_named(line):
    watched = Watched(line, weight_decay=0.0)
    watched.epoch(weight_scale=2e-3)
    assert watched.lines == []
    watched.epoch(weight_scale=0.25)
    reason = "its weights fell to 5.0e-04 of those at the start"
    assert watched.lines == [f"warning: line is dying: {reason}{NEXT}"]


def test_a_group_without_any_gradient_is_named(line):
    watched = Watched(line, weight_decay=0.0)
    for _ in range(3):
        watched.epoch(gradient_scale=0.0)
    assert watched.lines == [
        f"warning: line is dying: no gradient reached it, 3 epochs in a row{NEXT}"
    ]


def test_a_path_that_decay_kills_is_named_in_the_log(tiny_config, tiny_data, tmp_path):
    config = tiny_config(
        "trainer.max_epochs=8",
        "model.time_scale=tanhshrink",
        "optimizer.decayed_parameters=all",
        "optimizer.weight_decay=1",
    )
    run = fit(config, tiny_data(config), stage="finetune", runs_dir=tmp_path, echo=lambda _: None)
    log = (run.folder / "log.txt").read_text()
    assert "warning: layer0/time is dying" in log
    assert "item_encoder is dying" not in log
