import os
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
import yaml

from mmm4rec.batch import ItemCatalogue, ModalityFeatures, SequenceBatch
from mmm4rec.checkpoint import read_checkpoint, save_checkpoint, transfer_weights
from mmm4rec.errors import CheckpointError, ConfigError
from mmm4rec.model import MMM4Rec
from mmm4rec.official import to_official
from mmm4rec.official_files import export_official, features_file, import_official, read_official
from mmm4rec.official_settings import official_model_config
from mmm4rec.runner import load_model
from mmm4rec.settings import load_config

SETTINGS = {
    "hidden_size": 8,
    "inner_size": 12,
    "num_layers": 1,
    "embedding_drop_prob": 0.4,
    "dropout_prob": 0.4,
    "time_dropout_prob": 0.4,
    "d_state": 4,
    "n_groups": 2,
    "d_conv": 4,
    "expand": 2,
    "head_dim": 4,
    "norm_eps": 1e-12,
    "is_ffn": True,
    "is_time": True,
    "p2p_residual": False,
    "is_modality_bias": True,
    "temperature": 0.8,
    "max_len": 6,
    "dataset_path": "processed/Scientific",
    "seed": 2020,
}
NUM_ITEMS = 5
TABLES = ("text_embedding", "vision_embedding")


def catalogue(num_items=NUM_ITEMS, widths=(3, 2), fingerprint="domain"):
    random = torch.Generator().manual_seed(num_items)
    present_I = torch.arange(num_items + 1) > 0
    features = {
        name: ModalityFeatures(
            torch.randn(num_items + 1, width, generator=random) * present_I[:, None],
            present_I,
            encoder_key=f"siglip-{name}",
        )
        for name, width in zip(("text", "image"), widths, strict=True)
    }
    return ItemCatalogue(features, fingerprint)


@pytest.fixture
def theirs(tmp_path):
    """Write a checkpoint of theirs and its settings; return its model, state and both paths."""

    def write(content=None, **changes):
        torch.manual_seed(0)
        settings = {**SETTINGS, **changes}
        config = official_model_config(settings)
        model = MMM4Rec(config, catalogue())
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        state = OrderedDict(to_official(model.state_dict(), config))
        make = content or (lambda state: {"model": state})
        torch.save(make(state), tmp_path / "best_epoch_model.ckpt")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
        return model.eval(), state, tmp_path / "best_epoch_model.ckpt", tmp_path / "config.yaml"

    return write


def optimizer_of(model):
    optimizer = torch.optim.NAdam(model.parameters(), lr=1e-4, weight_decay=0.005)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def full(state):
    """As their fine-tuning saves its best epoch; the score is a tensor there."""
    optimizer = optimizer_of(torch.nn.Linear(2, 2))
    return {
        "model": state,
        "optimizer": optimizer,
        "epoch": 13,
        "best_val_score": torch.tensor(0.5),
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == weight.dtype == torch.float32, name
        assert torch.equal(found[name], weight), name


LAYOUTS = {
    "light": (lambda state: {"model": state}, None, []),
    "bare": (lambda state: dict(state), None, []),
    "full": (full, 13, ["optimizer"]),
    "without score": (
        lambda state: {"model": state, "optimizer": {}, "epoch": 2},
        2,
        ["optimizer"],
    ),
    "scheduler": (
        lambda state: {**full(state), "scheduler": {"gamma": 0.9, "_last_lr": [0.1]}},
        13,
        ["optimizer", "scheduler"],
    ),
    "parameters": (
        lambda state: {"model": {name: torch.nn.Parameter(w) for name, w in state.items()}},
        None,
        [],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_of_their_layouts_is_read(theirs, tmp_path, layout):
    content, epoch, left_out = LAYOUTS[layout]
    model, state, file, config = theirs(content)
    read = read_official(file)
    assert_same(read.state, state)
    assert (read.epoch, read.left_out) == (epoch, left_out)
    assert read.best_val_score == (0.5 if epoch == 13 else None)

    report = import_official(file, config, tmp_path / "out.safetensors")
    checkpoint = read_checkpoint(report.path)
    assert_same(checkpoint.weights, model.state_dict())
    assert checkpoint.training["epoch"] == epoch
    assert (f"left out: {', '.join(left_out)}" in str(report)) == bool(left_out)


@pytest.mark.parametrize("layout", ["full", "light"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"num_layers": 3}, {"is_time": False}, {"is_modality_bias": False}, {"is_ffn": False}],
    ids=str,
)
def test_there_and_back_is_equal_tensor_for_tensor(theirs, tmp_path, layout, changes):
    _, state, file, config = theirs(full, **changes)
    import_official(file, config, tmp_path / "out.safetensors")
    report = export_official(tmp_path / "out.safetensors", tmp_path / "back.ckpt", layout=layout)
    assert report.weights == len(state)
    back = torch.load(tmp_path / "back.ckpt", weights_only=True)
    assert_same(back["model"], state)
    assert list(back) == (
        ["model", "optimizer", "epoch", "best_val_score"] if layout == "full" else ["model"]
    )
    # What was written is read again, with the settings beside it.
    again = tmp_path / "again.safetensors"
    import_official(tmp_path / "back.ckpt", tmp_path / "back.ckpt.yaml", again)
    first, second = read_checkpoint(tmp_path / "out.safetensors"), read_checkpoint(again)
    assert_same(second.weights, first.weights)
    assert second.config == first.config


def test_the_shared_block_is_one_tensor_under_two_names(theirs, tmp_path):
    _, _, file, config = theirs()
    import_official(file, config, tmp_path / "out.safetensors")
    export_official(tmp_path / "out.safetensors", tmp_path / "back.ckpt")
    state = torch.load(tmp_path / "back.ckpt", weights_only=True)["model"]
    pair = [state[f"{side}coder_ssd_layers.0.ssd.in_proj.weight"] for side in ("en", "de")]
    assert pair[0].data_ptr() == pair[1].data_ptr()


def test_feature_tables_come_back(theirs, tmp_path):
    tables = {
        name: torch.randn(NUM_ITEMS + 1, width) for name, width in zip(TABLES, (3, 2), strict=True)
    }
    _, state, file, config = theirs(lambda state: {"model": state | tables})
    out = tmp_path / "out.safetensors"
    report = import_official(file, config, out)
    assert f"feature tables are kept in {features_file(out)}" in str(report)
    assert not read_checkpoint(out).weights.keys() & set(TABLES)
    export_official(out, tmp_path / "back.ckpt")
    back = torch.load(tmp_path / "back.ckpt", weights_only=True)["model"]
    assert_same(back, state | tables)
    assert len(back) == 113

    # A later import over it, of a file without tables, has none.
    _, _, file, config = theirs()
    import_official(file, config, out)
    assert not features_file(out).exists()


def test_the_full_layout_resumes_their_optimizer(theirs, tmp_path):
    """Their test and their resume load the optimizer state into NAdam over all parameters."""
    model, _, file, config = theirs(full)
    import_official(file, config, tmp_path / "out.safetensors")
    export_official(tmp_path / "out.safetensors", tmp_path / "back.ckpt", layout="full")
    written = torch.load(tmp_path / "back.ckpt", weights_only=True)
    optimizer = torch.optim.NAdam(model.parameters())
    optimizer.load_state_dict(written["optimizer"])
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["momentum_decay"]) == (1e-4, 0.005, 0.004)
    assert (written["epoch"], written["best_val_score"].item()) == (13, 0.5)


def test_an_imported_model_scores_as_the_original(theirs, tmp_path):
    model, _, file, config = theirs()
    items = catalogue()
    out = tmp_path / "runs" / "new.safetensors"  # its folder is made
    report = import_official(file, config, out, catalogue=items, domain="Scientific")
    assert report.notes == []
    checkpoint = read_checkpoint(out)
    assert checkpoint.fingerprint == "domain"
    assert checkpoint.encoder_keys == {"text": "siglip-text", "image": "siglip-image"}
    assert checkpoint.config.fidelity == "official"
    loaded = load_model(checkpoint, items)
    ids = torch.tensor([[1, 4, 2, 0, 0, 0]])
    batch = SequenceBatch(
        ids, torch.tensor([3]), ids * 86_400, torch.tensor([5]), torch.tensor([0])
    )
    scores = [m.score(m(batch), m.item_matrix()) for m in (model, loaded)]
    assert torch.equal(*scores)


def test_without_a_domain_the_item_tables_fit_no_one(theirs, tmp_path):
    _, _, file, config = theirs()
    report = import_official(file, config, tmp_path / "out.safetensors")
    assert "item tables name no items: fine-tuning starts them anew" in str(report)
    checkpoint = read_checkpoint(report.path)
    with pytest.raises(
        CheckpointError, match=r"item set unknown \(Scientific\), this one is domain"
    ):
        load_model(checkpoint, catalogue())
    items = catalogue(num_items=9, fingerprint="new")
    moved = transfer_weights(MMM4Rec(checkpoint.config.model, items), checkpoint, items)
    assert moved.reset == ["item_encoder.item_bias.image", "item_encoder.item_bias.text"]
    assert moved.refused == []


def test_item_tables_may_be_missing(theirs, tmp_path):
    def drop(state):
        return {"model": {k: v for k, v in state.items() if "item_embedding_bias" not in k}}

    _, _, file, config = theirs(drop)
    report = import_official(file, config, tmp_path / "out.safetensors")
    assert "no item tables: model.use_item_bias is off" in str(report)
    checkpoint = read_checkpoint(report.path)
    assert checkpoint.config.model.use_item_bias is False
    load_model(checkpoint, catalogue(num_items=9))  # any item set


def test_one_item_table_alone_is_refused(theirs, tmp_path):
    def drop(state):
        return {"model": {k: v for k, v in state.items() if k != "text_item_embedding_bias"}}

    _, _, file, config = theirs(drop)
    with pytest.raises(CheckpointError, match=r"Missing: text_item_embedding_bias\. Next"):
        import_official(file, config, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "items", "message"),
    [
        ({"item_num": 4}, None, r"text_item_embedding_bias is of 5 items, the settings' item_num"),
        ({}, catalogue(num_items=9), "text_item_embedding_bias is of 5 items, the domain has 9"),
        ({}, catalogue(widths=(3, 4)), "read image features of width 2, the domain has 4"),
    ],
    ids=["settings", "domain", "width"],
)
def test_another_item_set_is_refused(theirs, tmp_path, changes, items, message):
    _, _, file, config = theirs(**changes)
    with pytest.raises(CheckpointError, match=message):
        import_official(file, config, tmp_path / "out.safetensors", catalogue=items)


def test_a_domain_without_a_modality_has_no_width_to_compare(theirs, tmp_path):
    _, _, file, config = theirs()
    items = catalogue(widths=(3, 0))
    import_official(file, config, tmp_path / "out.safetensors", catalogue=items)
    assert read_checkpoint(tmp_path / "out.safetensors").fingerprint == "domain"


def test_settings_that_are_not_carried_over_are_named(theirs, tmp_path):
    _, _, file, config = theirs(num_experts=4, loss_type="CE")
    report = import_official(file, config, tmp_path / "out.safetensors")
    assert "not carried over: num_experts\n" in str(report)


def test_where_it_came_from_stands_in_the_file(theirs, tmp_path):
    import hashlib

    _, _, file, config = theirs(full)
    import_official(file, config, tmp_path / "out.safetensors")
    assert read_checkpoint(tmp_path / "out.safetensors").training == {
        "stage": "official",
        "domains": ["Scientific"],
        "epoch": 13,
        "seed": 2020,
        "best_val_score": 0.5,
        "source": {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()},
    }


def test_a_folder_gets_it_where_a_run_folder_has_it(theirs, tmp_path):
    _, _, file, config = theirs()
    (tmp_path / "run").mkdir()
    report = import_official(file, config, tmp_path / "run")
    assert report.path == tmp_path / "run" / "checkpoints" / "best.safetensors"
    assert read_checkpoint(tmp_path / "run").path == report.path
    export_official(tmp_path / "run", tmp_path / "back.ckpt")


def test_tensors_that_share_memory(theirs, tmp_path):
    def tie(state):
        state["text_in_layer_norm.weight"] = state["vision_in_layer_norm.weight"]
        return {"model": state}

    _, state, file, config = theirs(tie)
    import_official(file, config, tmp_path / "out.safetensors")
    weights = read_checkpoint(tmp_path / "out.safetensors").weights
    assert weights["item_encoder.norms.text.weight"].equal(state["vision_in_layer_norm.weight"])


class Makes:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_code_in_a_file_is_named_and_not_run(theirs, tmp_path):
    _, _, file, _ = theirs(lambda state: {"model": state, "hook": Makes(tmp_path / "made")})
    with pytest.raises(
        CheckpointError, match=r"best_epoch_model\.ckpt: posix\.mkdir, .* Next: fetch it"
    ):
        read_official(file)
    assert not (tmp_path / "made").exists()


WEIGHT = torch.ones(3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "no weights under 'model'; found list"),
        ({}, "no weights under 'model'; found dict"),
        ({"model": {}}, "no weights under 'model'; found model"),
        ({"state_dict": {"a": WEIGHT}, "epoch": 1}, "under 'model'; found state_dict, epoch"),
        ({"model": {"a": [1]}}, r"Refused: a \(str: list\)"),
        ({"model": {3: WEIGHT}}, r"Refused: 3 \(int: Tensor\)"),
        ({"model": {"a": WEIGHT.double()}}, r"Refused: a \(float64\)"),
        ({"model": {"a": WEIGHT.half(), "b": WEIGHT}}, r"Refused: a \(float16\)\. Next"),
        ({"model": {"a": WEIGHT.to_sparse()}}, r"a \(torch\.sparse_coo on cpu\)"),
        ({"model": {"a": torch.ones(3, device="meta")}}, r"a \(torch\.strided on meta\)"),
        ({"model": {"a": torch.ones(1).expand(10**12)}}, r"a \(not contiguous\)"),
        ({"model": {"a": WEIGHT / 0}}, r"a \(not finite\)"),
        ({"model": {"a": WEIGHT * torch.nan, "b": WEIGHT.bool()}}, r"a \(not finite\), b \(bool\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_what_is_not_a_file_of_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=message):
        read_official(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("epoch", "score"),
    [(-1, "x"), (2**40, torch.ones(2)), ("3", torch.tensor(torch.nan)), (1.5, 1)],
)
def test_odd_epochs_and_scores_are_not_known(tmp_path, epoch, score):
    content = {"model": {"a": WEIGHT}, "epoch": epoch, "best_val_score": score}
    torch.save(content, tmp_path / "x.ckpt")
    read = read_official(tmp_path / "x.ckpt")
    assert (read.epoch, read.best_val_score) == (None, None)


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"x\.ckpt: No such file or directory\. Next"):
        read_official(tmp_path / "x.ckpt")


def test_what_is_read_is_not_written_over(theirs, tmp_path):
    _, _, file, config = theirs()
    before = file.read_bytes()
    for target in (file, config):
        with pytest.raises(ConfigError, match=r"is what is read\. Next: write to another file"):
            import_official(file, config, target)
    out = tmp_path / "out.safetensors"
    import_official(file, config, out)
    with pytest.raises(ConfigError, match="is what is read"):
        export_official(out, out)
    with pytest.raises(ConfigError, match=r"is a folder\. Next: name a file with -o"):
        export_official(out, tmp_path)
    assert file.read_bytes() == before
    read_checkpoint(out)


def save_ours(path, *overrides, items=None):
    items = items or catalogue()
    sizes = (
        "model={d_model: 8, d_feed_forward: 12, d_state: 4, num_groups: 2, head_dim: 4, max_len: 6}"
    )
    config = load_config(None, [sizes, *overrides])
    model = MMM4Rec(config.model, items)
    training = {"stage": "finetune", "domains": ["Mine"], "epoch": 4, "seed": 0}
    save_checkpoint(path, model.state_dict(), config, items, training)
    return model


def test_a_model_trained_here_is_exported(tmp_path):
    model = save_ours(tmp_path / "ours.safetensors", "fidelity=official")
    report = export_official(tmp_path / "ours.safetensors", tmp_path / "theirs.ckpt")
    assert f"wrote 111 weights to {tmp_path / 'theirs.ckpt'}" in str(report)
    written = torch.load(tmp_path / "theirs.ckpt", weights_only=True)
    assert_same(
        written["model"],
        to_official(
            model.state_dict(),
            official_model_config(yaml.safe_load((tmp_path / "theirs.ckpt.yaml").read_text())),
        ),
    )
    assert written["epoch"] == 4
    assert "best_val_score" not in written


def test_a_corrected_model_is_not_exported(tmp_path):
    save_ours(tmp_path / "ours.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.time_norm is 'none' .*model\.time_scale is"):
        export_official(tmp_path / "ours.safetensors", tmp_path / "theirs.ckpt")
    assert not (tmp_path / "theirs.ckpt").exists()


def test_a_model_of_one_stream_is_not_exported(tmp_path):
    items = catalogue()
    items = replace(items, features={"text": items.features["text"]})
    save_ours(tmp_path / "ours.safetensors", "fidelity=official", items=items)
    with pytest.raises(
        CheckpointError, match=r"exactly a text and an image stream.*Missing: item_"
    ):
        export_official(tmp_path / "ours.safetensors", tmp_path / "theirs.ckpt")


def test_weights_that_broke_are_not_exported(tmp_path):
    model = save_ours(tmp_path / "ours.safetensors", "fidelity=official")
    checkpoint = read_checkpoint(tmp_path / "ours.safetensors")
    name = "layers.0.ti_ssd.ssd.D"
    checkpoint.weights[name] = model.state_dict()[name] * torch.nan
    with pytest.raises(CheckpointError, match=r"coder_ssd_layers\.0\.ssd\.D \(not finite\)"):
        export_official(checkpoint, tmp_path / "theirs.ckpt")
