import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from mmm4rec.callbacks.non_finite import find_first_output
from mmm4rec.errors import DivergenceError
from mmm4rec.lit_module import LitRecommender
from mmm4rec.model import MMM4Rec
from mmm4rec.runner import fit

BIAS = "item_encoder.item_bias.text"


@pytest.fixture
def diverge(tiny_config, tiny_data, monkeypatch, tmp_path):
    """Train with a fault in the 4th batch of the 2nd epoch; return the error, file and place."""

    def run(name, fault, *overrides):
        method, calls = getattr(LitRecommender, name), []

        def faulty(lit, *args):
            result = method(lit, *args)
            calls.append(name)
            return fault(lit, result) if len(calls) == 9 else result

        monkeypatch.setattr(LitRecommender, name, faulty)
        config = tiny_config(*overrides)
        with pytest.raises(DivergenceError) as caught:
            fit(config, tiny_data(config), stage="finetune", runs_dir=tmp_path, echo=str)
        (path,) = tmp_path.rglob("non_finite.0.safetensors")
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            place = json.loads(file.metadata()["place"])
        return str(caught.value), path, tensors, place

    return run


def _poison_weight(lit, result):
    with torch.no_grad():
        lit.model.get_parameter(BIAS)[3, 5] = float("nan")
    return result


def _poison_gradient(lit, result):
    lit.model.get_parameter(BIAS).register_hook(lambda gradient: gradient * float("inf"))
    return result


def _poison_loss(lit, loss):
    return loss * float("inf")


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(diverge):
    message, path, tensors, place = diverge("training_step", _poison_loss)
    assert message.startswith(
        "step 9, epoch 2, batch 4: the loss is not finite (share of the loss: inf); "
        "first: the loss. "
        f"The batch, the weights and the gradients are in {path}. Next: a lower optimizer.lr, or "
    )
    assert place == {
        "step": 9,
        "epoch": 2,
        "batch": 4,
        "loss": float("inf"),
        "first": "the loss",
    }
    assert len(tensors["batch.users_B"]) == 32
    assert tensors["batch.items_BL"].shape == (32, 6)


def test_the_command_of_the_message_looks_at_the_file(diverge):
    message, _, tensors, _ = diverge("on_train_batch_start", _poison_weight)
    code = re.search(r'python -c "(.*)"', message).group(1)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    assert sorted(json.loads(done.stdout.replace("'", '"'))) == sorted(bad)
    assert f"weight.{BIAS}" in bad


def test_a_weight_that_is_not_finite_comes_first(diverge):
    message, _, tensors, place = diverge("on_train_batch_start", _poison_weight)
    assert (
        "the loss is not finite (share of the loss: nan); first: the weight model." + BIAS
        in message
    )
    assert place["first"] == f"the weight model.{BIAS}"
    (at,) = tensors[f"weight.{BIAS}"].isnan().nonzero().tolist()
    assert at == [3, 5]


def test_a_gradient_that_is_not_finite_under_a_finite_loss(diverge):
    message, _, tensors, place = diverge("on_train_batch_start", _poison_gradient)
    assert re.search(
        rf"step 9, epoch 2, batch 4: the gradient is not finite \(share of the loss: \d\.\d+\); "
        rf"first: the gradient of model\.{BIAS}",
        message,
    )
    assert 0 < place["loss"] < 9
    assert not tensors[f"gradient.{BIAS}"].isfinite().all()
    assert all(x.isfinite().all() for name, x in tensors.items() if name.startswith("weight."))


def test_the_weights_are_those_before_the_step(diverge):
    seen = {}

    def keep(lit, loss):
        seen.update({n: weight.detach().clone() for n, weight in lit.model.named_parameters()})
        return _poison_loss(lit, loss)

    _, _, tensors, _ = diverge("training_step", keep)
    assert {f"weight.{name}" for name in seen} == {n for n in tensors if n.startswith("weight.")}
    for name, weight in seen.items():
        assert weight.equal(tensors[f"weight.{name}"]), name


def test_the_bad_batch_of_several_that_one_step_stands_on(diverge):
    message, _, _, place = diverge(
        "training_step", _poison_loss, "trainer.accumulate_grad_batches=5"
    )
    assert message.startswith("step 2, epoch 2, batch 4: the loss is not finite")
    assert (place["step"], place["batch"]) == (2, 4)


def test_without_the_guard_the_run_goes_on(tiny_config, tiny_data, monkeypatch, tmp_path):
    config = tiny_config("watch.non_finite=false", "trainer.max_epochs=1")
    monkeypatch.setattr(LitRecommender, "on_train_batch_start", lambda *_: None)
    step = LitRecommender.training_step
    monkeypatch.setattr(
        LitRecommender, "training_step", lambda lit, *a: step(lit, *a) * float("inf")
    )
    with pytest.raises(DivergenceError, match="no rank: the model diverged"):
        fit(config, tiny_data(config), stage="finetune", runs_dir=tmp_path, echo=str)
    assert list(tmp_path.rglob("non_finite*")) == []


def test_large_numbers_are_not_an_error(tiny_config, tiny_data, monkeypatch, tmp_path):
    """The norm of the gradient overflows, the gradient does not."""
    step = LitRecommender.training_step
    monkeypatch.setattr(LitRecommender, "training_step", lambda lit, *a: step(lit, *a) * 1e25)
    config = tiny_config("trainer.max_epochs=1")
    run = fit(config, tiny_data(config), stage="finetune", runs_dir=tmp_path, echo=str)
    assert run.results["epochs"] == 1


def test_the_first_module_is_the_innermost_one_that_returns_it(
    tiny_config, tiny_catalogue, tiny_data
):
    config = tiny_config()
    (batch,) = list(tiny_data(config).test_dataloader())
    model = MMM4Rec(config.model, tiny_catalogue()).eval()
    assert find_first_output(model, batch) is None
    broken = model.layers[0].feed_forward.fc1
    handle = broken.register_forward_hook(lambda *call: call[-1] / 0)
    assert find_first_output(model, batch) == "layers.0.feed_forward.fc1"
    handle.remove()
    assert find_first_output(model, batch) is None  # nothing of the look is left
