"""Models into memory: where they come from, and everything that can be wrong with them."""

import json
import re

import pytest
import torch
from transformers import BertConfig, BertModel

from mmm4rec.errors import ConfigError, DataError
from pipeline import model_files
from pipeline.encoders import NAMED, EncoderSpec, load_encoder
from pipeline.model_files import is_bfloat16, load_pretrained, locate, resolve_device


@pytest.fixture
def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=9, num_hidden_layers=2, **sizes))


def test_a_hub_out_of_reach(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        DataError,
        match=r"'siglip-base': https://hub\.invalid cannot be reached .*hashing .*, minilm ",
    ):
        load_encoder(EncoderSpec("text", "siglip-base"))


def test_short_names_are_pinned(monkeypatch, tmp_path):
    asked = []

    def download(repo, revision):
        asked.append((repo, revision))
        return tmp_path / "abc123"

    monkeypatch.setattr(model_files, "_download", download)
    monkeypatch.setattr(model_files, "_packaged_minilm", lambda: None)
    assert locate("siglip-base", "image") == (tmp_path / "abc123", "abc123")
    assert locate("minilm", "text") == (tmp_path / "abc123", "abc123")
    locate("owner/model@v1.0", "text")
    locate("owner/model", "text")
    assert [repo for repo, _ in asked] == [
        "google/siglip-base-patch16-224", "sentence-transformers/all-MiniLM-L6-v2",
        "owner/model", "owner/model",
    ]  # fmt: skip
    assert [bool(re.fullmatch("[0-9a-f]{40}", revision or "")) for _, revision in asked] == [
        True, True, False, False,
    ]  # fmt: skip
    assert [revision for _, revision in asked[2:]] == ["v1.0", None]


def test_pickled_weights_are_not_read(bert, tmp_path):
    torch.save(bert.state_dict(), tmp_path / "pytorch_model.bin")
    bert.config.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"cannot load the text encoder .*safetensors"):
        load_encoder(EncoderSpec("text", str(tmp_path)))


def test_code_of_a_repository_is_not_run(tmp_path):
    marker = tmp_path / "was_run"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    auto = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    config = {"model_type": "evil", "auto_map": auto}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="cannot load the image encoder"):
        load_encoder(EncoderSpec("image", str(tmp_path)))
    assert not marker.exists()


def test_a_model_without_all_its_weights(bert, tmp_path):
    state = {k: v for k, v in bert.state_dict().items() if "layer.1.output" not in k}
    bert.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(DataError, match=r"4 of its weights are not in its files \(encoder\.layer"):
        load_encoder(EncoderSpec("text", str(tmp_path)))


def test_damaged_weights(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(DataError, match="cannot load the text encoder"):
        load_encoder(EncoderSpec("text", str(tmp_path)))


@pytest.mark.parametrize("device", ["gpu", "tpu", ""])
def test_devices_are_named(device):
    with pytest.raises(ConfigError, match="auto, cpu or cuda, found"):
        resolve_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="PyTorch sees no GPU"):
        load_pretrained(EncoderSpec("text", str(tmp_path), "cuda"))


def test_every_short_name_is_pinned_to_a_commit():
    meant = [name for names in NAMED.values() for name in names.values()]
    assert len(meant) == 7
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", name) for name in meant)


def test_precision_by_device(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for supported in (True, False):
        monkeypatch.setattr(
            "torch.cuda.is_bf16_supported", lambda including_emulation, s=supported: s
        )
        assert is_bfloat16("auto", gpu) == supported
        assert not is_bfloat16("auto", cpu)
        assert not is_bfloat16("32-true", gpu)
        assert is_bfloat16("bf16-true", cpu)


def test_a_model_is_loaded_in_its_precision(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    whole = load_pretrained(EncoderSpec("text", str(tmp_path), "cpu"))
    half = load_pretrained(EncoderSpec("text", str(tmp_path), "cpu", "bf16-true"))
    assert (whole.model.dtype, half.model.dtype) == (torch.float32, torch.bfloat16)
    assert whole.weights == half.weights  # of the files, whatever is computed with them
    assert whole.has_pooler
    bert.pooler = None
    bert.save_pretrained(tmp_path)
    assert not load_pretrained(EncoderSpec("text", str(tmp_path), "cpu")).has_pooler
