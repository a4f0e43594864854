"""The official fidelity against numbers that the authors' implementation computed.

Needs the folder of fixtures in MMM4REC_PARITY_DIR; every NAME.json in it is taken.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmm4rec.batch import ItemCatalogue, ModalityFeatures, SequenceBatch
from mmm4rec.checkpoint import read_checkpoint
from mmm4rec.config import ModelConfig
from mmm4rec.layers.time import TimeSignal
from mmm4rec.loss import full_catalogue_loss, in_batch_loss
from mmm4rec.metrics import target_rank
from mmm4rec.model import MMM4Rec
from mmm4rec.official import from_official, to_official
from mmm4rec.official_files import export_official, import_official
from mmm4rec.official_settings import official_model_config
from mmm4rec.ops.ssd import ssd
from mmm4rec.runner import load_model
from pipeline.sequences import FlatSequences

SET = "MMM4REC_PARITY_DIR" in os.environ
FOLDER = Path(os.environ.get("MMM4REC_PARITY_DIR", "."))
NAMES = sorted(path.stem for path in FOLDER.rglob("*.json")) if SET else []
BLOCKS = sorted(path.stem for path in FOLDER.rglob("*_blocks.npz")) if SET else []
EXACT = {"rtol": 1e-9, "atol": 1e-12}
FINAL = {"user", "scores", "in_batch_scores", "loss_full", "loss_in_batch", "target_rank"}
OUT = {"scaled_by_step": "out", "unscaled": "out_mamba_d"}

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not SET, reason="MMM4REC_PARITY_DIR is not set"),
]
each_fixture = pytest.mark.parametrize("name", NAMES)
each_blocks = pytest.mark.parametrize("name", BLOCKS)


@dataclass(frozen=True)
class Fixture:
    arrays: dict[str, torch.Tensor]
    model: MMM4Rec
    batch: SequenceBatch

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.arrays[key]


def read_arrays(name: str) -> dict[str, torch.Tensor]:
    path = next(FOLDER.rglob(f"{name}.npz"))
    with np.load(path) as arrays:
        return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}


def under(prefix: str, arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def about(key: str) -> Callable[[str], str]:
    return lambda message: f"{key}: {message}"


def base(blocks: str) -> str:
    return blocks.removesuffix("_blocks")


@cache
def record_of(name: str) -> dict[str, Any]:
    return json.loads(next(FOLDER.rglob(f"{name}.json")).read_text())


def config_of(name: str, **changes: str) -> ModelConfig:
    return official_model_config(record_of(name)["config"]).model_copy(update=changes)


def catalogue_of(name: str, arrays: dict[str, torch.Tensor]) -> ItemCatalogue:
    return ItemCatalogue(
        features={
            "text": features(arrays["in/text_features"]),
            "image": features(arrays["in/vision_features"]),
        },
        fingerprint=name,
    )


@cache
def load(name: str, dtype: torch.dtype = torch.float64, **changes: str) -> Fixture:
    arrays = read_arrays(name)
    config = config_of(name, **changes)
    model = MMM4Rec(config, catalogue_of(name, arrays))
    model.load_state_dict(from_official(under("param/", arrays), config))
    batch = SequenceBatch(
        items_BL=arrays["in/item_seq"],
        lengths_B=arrays["in/length"],
        timestamps_BL=arrays["in/timestamps"],
        targets_B=arrays["in/labels"],
        users_B=arrays["in/user"],
    )
    return Fixture(arrays, model.to(dtype).eval(), batch)


def features(values: torch.Tensor) -> ModalityFeatures:
    present_I = torch.ones(len(values) + 1, dtype=torch.bool)
    present_I[0] = False
    return ModalityFeatures(torch.nn.functional.pad(values, (0, 0, 1, 0)), present_I)


def results(model: MMM4Rec, batch: SequenceBatch) -> dict[str, torch.Tensor]:
    user_BD = model(batch)
    scores_BI = model.score(user_BD, model.item_matrix())
    in_batch_BB = model.score(user_BD, model.encode_items(batch.targets_B))
    return {
        "user": user_BD,
        "scores": scores_BI,
        "in_batch_scores": in_batch_BB,
        "loss_full": full_catalogue_loss(scores_BI, batch.targets_B, padding_candidate=True),
        "loss_in_batch": in_batch_loss(in_batch_BB, batch.targets_B, mask_duplicates=False),
    }


def test_fixtures_are_found():
    assert NAMES


@each_fixture
@pytest.mark.parametrize("backend", ["quadratic", "recurrent"])
def test_final_results(name, backend):
    fixture = load(name, ssd_backend=backend)
    for key, value in results(fixture.model, fixture.batch).items():
        torch.testing.assert_close(value, fixture[f"out/{key}"], **EXACT, msg=about(key))


@each_fixture
@pytest.mark.parametrize("skip", ["scaled_by_step", "unscaled"])
def test_target_rank(name, skip):
    fixture = load(name, skip=skip)
    scores_BI = results(fixture.model, fixture.batch)["scores"].detach()
    rank = target_rank(scores_BI, fixture.batch.targets_B, padding_candidate=True)
    suffix = "_mamba_d" if skip == "unscaled" else ""
    assert torch.equal(rank.better_B, fixture[f"out/target_rank{suffix}"])
    assert not rank.tied_B.any()


@each_fixture
@pytest.mark.parametrize("backend", ["quadratic", "recurrent"])
def test_mamba_skip(name, backend):
    fixture = load(name, skip="unscaled", ssd_backend=backend)
    for key, value in results(fixture.model, fixture.batch).items():
        torch.testing.assert_close(value, fixture[f"out/{key}_mamba_d"], **EXACT, msg=about(key))


@each_fixture
@pytest.mark.parametrize("skip", ["scaled_by_step", "unscaled"])
def test_float32(name, skip):
    fixture = load(name, torch.float32, skip=skip)
    suffix = "_mamba_d" if skip == "unscaled" else ""
    for key, value in results(fixture.model, fixture.batch).items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(
            value.double(), fixture[f"out/{key}{suffix}"], rtol=0, atol=5e-5, msg=about(key)
        )
        if not suffix:  # what their own float32 run gave
            theirs = fixture[f"f32/{key}"]
            torch.testing.assert_close(value, theirs, rtol=0, atol=5e-5, msg=about(key))


@each_fixture
def test_intermediates(name):
    fixture = load(name)
    model, batch = fixture.model, fixture.batch
    checked = FINAL | {f"{key}_mamba_d" for key in FINAL}

    def check(key: str, value: torch.Tensor) -> None:
        checked.add(key)
        torch.testing.assert_close(value, fixture[f"out/{key}"], **EXACT, msg=about(key))

    streams = model.item_encoder(batch.items_BL)
    check("text_in", streams[0])
    check("vision_in", streams[1])
    time = None
    if model.time_encoder is not None:
        time = model.time_encoder(batch.timestamps_BL, batch.lengths_B)
        check("time_diff", time.of_modality(0))
    for index, layer in enumerate(model.layers):
        seen = {}
        fusion = layer.fusions["image"]
        hook = fusion.co_ssd.register_forward_hook(
            lambda _, args, output, seen=seen: seen.update(
                co_query=args[0], co_time=args[2], co_out=output
            )
        )
        streams, time = layer(streams, time)
        hook.remove()
        check(f"encoder.{index}.hidden", streams[0])
        check(f"decoder.{index}.hidden", streams[1])
        for key, value in seen.items():
            if value is not None:
                check(f"decoder.{index}.{key}", value)
        if time is not None:
            check(f"encoder.{index}.time", time.of_modality(0))
            check(f"decoder.{index}.time", time.of_modality(1))
    assert checked == under("out/", fixture.arrays).keys()


@each_fixture
@pytest.mark.parametrize("loss", ["full", "in_batch"])
def test_gradient_norms(name, loss):
    fixture = load(name)
    fixture.model.zero_grad()
    results(fixture.model, fixture.batch)[f"loss_{loss}"].backward()
    norms = {key: weight.grad.norm() for key, weight in fixture.model.named_parameters()}
    found = to_official(norms, config_of(name))
    expected = under(f"grad_norm_{loss}/", fixture.arrays)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, **EXACT, msg=about(key))
    unchecked = found.keys() - expected.keys() - {"fusion_factor"}
    assert all(".ssd." in key and key.startswith("decoder") for key in unchecked)


@each_fixture
def test_isolated_decoder(name):
    """Two unlike time signals: a mix-up of the two filters shows only here."""
    fixture = load(name)
    given = under("isolated_decoder/", fixture.arrays)
    layer = fixture.model.layers[0]
    fusion = layer.fusions["image"]
    time = co_time = None
    if "in_decoder_time" in given:
        time = TimeSignal(given["in_decoder_time"][None], None)
    mixed, time = layer.ti_ssd(given["in_decoder"][None], time)
    query = layer.norms["image"](mixed[0] + given["in_decoder"])
    if time is not None:
        torch.testing.assert_close(time.of_modality(0), given["out_time"], **EXACT)
        co_time = fusion.filter(time.of_modality(0), given["in_encoder_time"], None)
    torch.testing.assert_close(fusion(query, given["in_encoder"], co_time), given["out"], **EXACT)


@each_fixture
@pytest.mark.parametrize("layout", ["full", "light"])
def test_weights_come_and_go_through_files(name, layout, tmp_path):
    """Their file in, ours scores as theirs, their file out again: equal tensor for tensor."""
    fixture, record = load(name, torch.float32), record_of(name)
    theirs = under("param/", fixture.arrays)
    if record["config"]["num_layers"] == 1:
        assert len(theirs) == (113 if record["config"]["is_modality_bias"] else 111)
    torch.save({"model": theirs}, tmp_path / "theirs.ckpt")
    (tmp_path / "settings.json").write_text(json.dumps(record["config"]))
    catalogue = catalogue_of(name, fixture.arrays)
    out = tmp_path / "ours.safetensors"
    import_official(tmp_path / "theirs.ckpt", tmp_path / "settings.json", out, catalogue=catalogue)
    model = load_model(read_checkpoint(out), catalogue)
    with torch.no_grad():
        for key, value in results(model, fixture.batch).items():
            torch.testing.assert_close(
                value.double(), fixture[f"out/{key}"], rtol=0, atol=5e-5, msg=about(key)
            )
    export_official(out, tmp_path / "back.ckpt", layout=layout)
    back = torch.load(tmp_path / "back.ckpt", weights_only=True)["model"]
    assert back.keys() == theirs.keys()
    for key, value in theirs.items():
        assert back[key].dtype == value.dtype == torch.float32, key
        assert torch.equal(back[key], value), key


@each_fixture
def test_batch_of_the_histories(name):
    """Truncation, padding and the leak of the target's time, from the users' histories."""
    fixture, histories = load(name), [events for _, events in record_of(name)["raw_sequences"]]
    offsets_U = torch.tensor([0, *map(len, histories)]).cumsum(0)
    events_N = torch.tensor([event for events in histories for event in events])
    batch = FlatSequences(events_N[:, 0], events_N[:, 1], offsets_U).gather(
        offsets_U[1:] - 1, fixture.model.max_len, "leaked"
    )
    assert torch.equal(batch.items_BL, fixture["in/item_seq"])
    assert torch.equal(batch.timestamps_BL, fixture["in/timestamps"])
    assert torch.equal(batch.lengths_B, fixture["in/length"])
    assert torch.equal(batch.targets_B, fixture["in/labels"])


@each_blocks
@pytest.mark.parametrize("skip", ["scaled_by_step", "unscaled"])
def test_shared_block(name, skip):
    given = under("tissd/", read_arrays(name))
    block = load(base(name), skip=skip).model.layers[0].ti_ssd
    out, time = block(given["in_u"][None], TimeSignal(given["in_time"][None], None))
    torch.testing.assert_close(out[0], given[OUT[skip]], **EXACT)
    torch.testing.assert_close(time.of_modality(0), given["out_time"], **EXACT)


@each_blocks
@pytest.mark.parametrize("skip", ["scaled_by_step", "unscaled"])
def test_co_block(name, skip):
    given = under("cotissd/", read_arrays(name))
    block = load(base(name), skip=skip).model.layers[0].fusions["image"].co_ssd
    out = block(given["in_q"], given["in_u"], given["in_time"])
    torch.testing.assert_close(out, given[OUT[skip]], **EXACT)


@each_blocks
@pytest.mark.parametrize("groups", ["groups_eq_heads", "one_group"])
@pytest.mark.parametrize("backend", ["recurrent", "quadratic"])
def test_state_space(name, groups, backend):
    given = under(f"ssd_{groups}/", read_arrays(name))
    inputs = [given[f"in_{key}"] for key in ("x", "dt", "A", "B", "C", "D", "dt_bias")]
    for skip, key in OUT.items():
        out = ssd(*inputs, skip=skip, backend=backend)
        torch.testing.assert_close(out, given[key], **EXACT)


@each_blocks
def test_complex_linear(name):
    given = under("complex_linear/", read_arrays(name))
    # Their text-named filter acts on the asking stream.
    linear = load(base(name)).model.layers[0].fusions["image"].filter.query_map
    out = linear(torch.complex(given["in_real"], given["in_imag"]))
    torch.testing.assert_close(out.real, given["out_real"], **EXACT)
    torch.testing.assert_close(out.imag, given["out_imag"], **EXACT)
