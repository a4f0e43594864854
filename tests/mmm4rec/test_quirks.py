"""Every switch between what is right and what the released code computes, by both its values.

`TESTS` says where each is tested; what no other file tests is tested here.
"""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer
from torch.nn import functional as F

from mmm4rec.batch import ItemCatalogue, ModalityFeatures
from mmm4rec.config import OFFICIAL, ModelConfig
from mmm4rec.layers.norm import GatedRMSNorm, LayerNorm, PositionNorm
from mmm4rec.layers.time import TimeEncoder
from mmm4rec.lit_module import LitRecommender
from mmm4rec.loss import full_catalogue_loss, in_batch_loss
from mmm4rec.model import MMM4Rec
from mmm4rec.settings import load_config
from pipeline.sequences import FlatSequences

TESTS = {
    "model.time_gaps": [
        "tests/mmm4rec/layers/test_time.py::test_log_gaps_from_a_tie_to_ten_years",
        "tests/mmm4rec/layers/test_time.py::test_seconds_let_padding_take_part",
    ],
    "model.time_norm": [
        "tests/mmm4rec/layers/test_norm.py::test_all_positions_is_layer_norm",
        "tests/mmm4rec/layers/test_norm.py::test_masked_is_layer_norm_of_the_real_positions",
        "tests/mmm4rec/layers/test_time.py::test_encoder_gives_gaps_as_they_are",
        "tests/mmm4rec/layers/test_time.py::test_normalising_encoder_ignores_padding",
        "tests/mmm4rec/layers/test_time.py::test_official_encoder_reads_padding",
    ],
    "model.time_scale": [
        "tests/mmm4rec/layers/test_time.py::test_scale_formula",
        "tests/mmm4rec/layers/test_time.py::test_only_the_corrected_scale_is_alive_at_the_start",
        "tests/mmm4rec/layers/test_fourier.py"
        "::test_corrected_starts_near_the_mean_and_official_near_zero",
    ],
    "model.time_convolution": ["tests/mmm4rec/layers/test_time.py::test_scale_formula"],
    "model.time_dropout": ["tests/mmm4rec/test_quirks.py::test_time_dropout"],
    "model.norm_eps": ["tests/mmm4rec/test_quirks.py::test_norm_eps"],
    "model.missing_modality": [
        "tests/mmm4rec/layers/test_item_encoder.py"
        "::test_learned_vector_replaces_the_adapter_before_the_bias",
        "tests/mmm4rec/layers/test_item_encoder.py"
        "::test_white_is_the_blank_feature_through_the_adapter",
    ],
    "data.target_time": [
        "tests/pipeline/test_sequences.py"
        "::test_a_batch_holds_the_most_recent_items_before_the_target",
        "tests/pipeline/test_sequences.py"
        "::test_leaked_target_time_stands_behind_the_last_item_where_there_is_room",
        "tests/mmm4rec/test_quirks.py::test_only_leaked_time_tells_of_the_target",
    ],
    "loss.padding_candidate": [
        "tests/mmm4rec/test_loss.py::test_padding_is_no_class_unless_asked",
        "tests/mmm4rec/test_metrics.py::test_padding_takes_part_only_when_asked",
        "tests/mmm4rec/test_quirks.py::test_padding_candidate",
    ],
    "loss.duplicate_targets": [
        "tests/mmm4rec/test_loss.py::test_equal_targets_are_no_negatives_of_each_other",
        "tests/mmm4rec/test_quirks.py::test_duplicate_targets",
    ],
    "optimizer.decayed_parameters": [
        "tests/mmm4rec/test_model.py::test_decayed_parameters",
        "tests/mmm4rec/test_quirks.py::test_decayed_parameters",
    ],
    "optimizer.accumulation": ["tests/mmm4rec/test_quirks.py::test_accumulation"],
    "prepare.text_template": [
        "tests/pipeline/test_text.py::test_clean_template_is_title_brand_description",
        "tests/pipeline/test_text.py::test_official_template_is_that_of_the_released_code",
    ],
}
ROOT = Path(__file__).parents[2]
DAY = 86_400
SIZES = "model={d_model: 8, d_feed_forward: 8, d_state: 4, num_groups: 2, head_dim: 4, max_len: 6}"
NO_DROPOUT = "model={dropout: 0, item_dropout: 0, time_dropout: 0}"


def test_every_quirk_is_tested_by_a_test_that_exists():
    fields = {f"{section}.{key}" for section, keys in OFFICIAL.items() for key in keys}
    assert TESTS.keys() == fields
    for place in (test for tests in TESTS.values() for test in tests):
        path, name = place.split("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, place


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_time_dropout(rate):
    """Gaps are dropped before the norm: what is kept is scaled, and each modality draws its own."""
    torch.manual_seed(0)
    config = ModelConfig(
        max_len=500, time_dropout=rate, time_norm="all_positions", time_gaps="log_seconds"
    )
    encoder = TimeEncoder(config, num_modalities=2).train()
    seen = []
    encoder.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    stamps = torch.arange(500)[None] * DAY
    encoder(stamps, torch.tensor([500]))
    gaps_SL = seen[0][:, 0, 0, 1:]
    day = 4 * torch.tensor(1.0 + DAY).log() / torch.tensor(1.0 + 3_650 * DAY).log() - 2
    if rate == 0:
        assert gaps_SL.shape == (1, 499)  # one signal for both
        torch.testing.assert_close(gaps_SL, day.expand_as(gaps_SL))
    else:
        dropped_SL = gaps_SL == 0
        assert 0.35 < dropped_SL.float().mean() < 0.45
        assert not torch.equal(dropped_SL[0], dropped_SL[1])
        kept = gaps_SL[~dropped_SL]
        torch.testing.assert_close(kept, (day / 0.6).expand_as(kept), rtol=1e-3, atol=0)


@pytest.mark.parametrize("eps", [1e-5, 1e-12])
def test_norm_eps(eps, tiny_catalogue):
    """All norms have it; a nearly constant signal is scaled to 1 only by the official one."""
    config = ModelConfig(norm_eps=eps, time_norm="real_positions")
    model = MMM4Rec(config, tiny_catalogue())
    norms = [m for m in model.modules() if isinstance(m, LayerNorm | PositionNorm | GatedRMSNorm)]
    assert len(norms) == 11
    assert {norm.eps for norm in norms} == {model.item_encoder.eps} == {eps}
    x_D = torch.tensor([1e-4, -1e-4]).repeat(128)
    size = 1e-4 / (1e-8 + eps) ** 0.5  # 0.03 or 1
    torch.testing.assert_close(model.layers[0].norms["text"](x_D), x_D.sign() * size)


def walk(changed_item=None, changed_time=None):
    """Two users whose last events are the targets; those of the first can be changed."""
    items_N, times_N = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8]), torch.arange(8) * 3 * DAY
    times_N = times_N + 1_500_000_000
    target_at = torch.tensor([3, 7])
    if changed_item:
        items_N[3] = changed_item
    if changed_time:
        times_N[3] += changed_time
    return FlatSequences(items_N, times_N, torch.tensor([0, 4, 8])), target_at


def model_of(config, num_items=9):
    torch.manual_seed(0)
    present_I = torch.arange(num_items + 1) > 0
    features = {
        name: ModalityFeatures(torch.randn(num_items + 1, 5) * present_I[:, None], present_I)
        for name in ("text", "image")
    }
    model = MMM4Rec(config.model, ItemCatalogue(features, "x"))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.mark.parametrize("fidelity", ["corrected", "official"])
@pytest.mark.parametrize("max_len", [3, 6])
def test_only_leaked_time_tells_of_the_target(fidelity, max_len):
    """With the target another item at another time, the user vectors are the same, bit for bit.

    In the released code the time changes them, where the history leaves room for it.
    """
    config = load_config(None, [SIZES, f"fidelity={fidelity}", f"model.max_len={max_len}"])
    model = model_of(config)

    def users(**changes):
        sequences, target_at = walk(**changes)
        return model(sequences.gather(target_at, max_len, config.data.target_time))

    before_BD = users()
    assert torch.equal(users(changed_item=9), before_BD)
    after_BD = users(changed_item=9, changed_time=400 * DAY)
    leaks = fidelity == "official" and max_len > 3
    assert torch.equal(after_BD[0], before_BD[0]) != leaks
    assert torch.equal(after_BD[1], before_BD[1])


def test_the_moment_of_recommending_is_read_only_where_it_is_given():
    """`data.query_time: now`: the target's time is an input, its item still is not."""
    config = load_config(None, [SIZES, "data.query_time=now"])
    model = model_of(config)

    def users(query_time, **changes):
        sequences, target_at = walk(**changes)
        return model(sequences.gather(target_at, 6, query_time=query_time))

    before_BD = users("now")
    assert not torch.equal(before_BD, users("none"))
    assert torch.equal(users("now", changed_item=9), before_BD)
    after_BD = users("now", changed_time=400 * DAY)
    assert not torch.equal(after_BD[0], before_BD[0])
    assert torch.equal(after_BD[1], before_BD[1])


@pytest.mark.parametrize("fidelity", ["corrected", "official"])
def test_a_longer_padding_changes_nothing(fidelity):
    config = load_config(None, [SIZES, f"fidelity={fidelity}", "data.target_time=hidden"])
    model = model_of(config).double()
    sequences, target_at = walk()
    short = sequences.gather(target_at, 3)
    long = sequences.gather(target_at, 6)
    assert short.items_BL.shape != long.items_BL.shape
    torch.testing.assert_close(model(long), model(short), rtol=1e-12, atol=1e-12)


class Watch(Callback):
    """Keeps what a training does: its batches, and the gradients at each step."""

    def __init__(self):
        self.batches, self.gradients = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batches.append(batch)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append([p.grad.clone() for p in module.model.parameters()])


@pytest.fixture
def train(tiny_config, tiny_data):
    """Train for an epoch at a step size that changes no weight."""

    def run(*overrides):
        config = tiny_config("optimizer.lr=1.0e-30", NO_DROPOUT, *overrides)
        data, watch = tiny_data(config), Watch()
        torch.manual_seed(0)
        lit = LitRecommender(config, MMM4Rec(config.model, data.catalogue))
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            accumulate_grad_batches=config.trainer.accumulate_grad_batches,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
            callbacks=[watch],
        )
        trainer.fit(lit, datamodule=data)
        return lit, watch, float(trainer.callback_metrics["train/loss"])

    return run


def gradients(lit, batch):
    user_BD = lit.model(batch)
    scores_BI = lit.model.score(user_BD, lit.model.item_matrix())
    loss = full_catalogue_loss(scores_BI, batch.targets_B)
    return torch.autograd.grad(loss, list(lit.model.parameters()))


@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_accumulation(train, kind):
    """Of three batches in groups of two: the last group is short, and is its batch's either way."""
    lit, watch, _ = train(
        f"optimizer.accumulation={kind}",
        "trainer.accumulate_grad_batches=2",
        "data.batch_size=64",
    )
    first, second, third = (gradients(lit, batch) for batch in watch.batches)
    both = [a + b if kind == "sum" else (a + b) / 2 for a, b in zip(first, second, strict=True)]
    assert len(watch.gradients) == 2
    for found, expected in zip(watch.gradients, (both, third), strict=True):
        torch.testing.assert_close(found, list(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["excluded", "scored"])
def test_padding_candidate(train, kind):
    """The setting reaches the training loss and the ranks."""
    lit, watch, found = train(f"loss.padding_candidate={kind}", "data.batch_size=1024")
    (batch,) = watch.batches
    scores_BI = lit.model.score(lit.model(batch), lit.model.item_matrix())
    if kind == "excluded":
        expected = F.cross_entropy(scores_BI[:, 1:], batch.targets_B - 1)
    else:
        expected = F.cross_entropy(scores_BI, batch.targets_B)
    assert found == pytest.approx(expected.item(), rel=1e-5)

    with torch.no_grad():
        lit.on_test_epoch_start()
        lit.test_step(replace(batch, users_B=torch.arange(len(batch))), 0)
    _, rank = lit.test_metrics.ranks()
    better_BI = scores_BI > scores_BI.gather(1, batch.targets_B[:, None])
    assert better_BI[:, 0].any()
    counted = better_BI if kind == "scored" else better_BI[:, 1:]
    assert rank.better_B.tolist() == counted.sum(1).tolist()


@pytest.mark.parametrize("kind", ["masked", "negatives"])
def test_duplicate_targets(train, kind):
    """The setting reaches the training loss."""
    lit, watch, found = train(
        "loss.candidates=in_batch",
        f"loss.duplicate_targets={kind}",
        "data.batch_size=1024",
        "model.temperature=50",  # scores that are close: duplicates weigh
    )
    (batch,) = watch.batches
    assert len(batch.targets_B.unique()) < len(batch)
    scores_BB = lit.model.score(lit.model(batch), lit.model.encode_items(batch.targets_B))
    both = {
        flag: in_batch_loss(scores_BB, batch.targets_B, mask_duplicates=flag).item()
        for flag in (True, False)
    }
    assert found == pytest.approx(both[kind == "masked"], rel=1e-5)
    assert both[False] > both[True] + 0.01


@pytest.mark.parametrize("kind", ["weights", "all"])
def test_decayed_parameters(kind, tiny_config, tiny_catalogue):
    """Without any gradient of the loss, a step moves what decay applies to, and nothing else."""
    config = tiny_config(f"optimizer.decayed_parameters={kind}")
    model = MMM4Rec(config.model, tiny_catalogue())
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    LitRecommender(config, model).configure_optimizers().step()
    moved = {name for name, parameter in model.named_parameters() if (parameter < 1).all()}
    still = {name for name, parameter in model.named_parameters() if (parameter == 1).all()}
    names = {name for name, _ in model.named_parameters()}
    assert moved | still == names
    if kind == "all":
        assert moved == names
        return
    kept = ("norm", "bias", "A_log", "ssd.D", "conv", "time", "filter", "missing")
    assert still == {
        name for name in names if any(part in name for part in kept) and "item_bias" not in name
    }
