"""Several processes write the bytes of one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from mmm4rec.config import FeaturesConfig
from mmm4rec.errors import ConfigError
from pipeline import encoding_processes
from pipeline.encoders import EncoderSpec, HashingTextEncoder, load_encoder
from pipeline.encoding_processes import encode_in_processes, is_first_machine
from pipeline.features import encode_texts

WORDS = ["red", "blue", "chair", "lamp", "wooden", "steel"]
TEXTS = [" ".join(WORDS[n % 5 :: 1 + n % 3] * (1 + n % 7)) if n % 9 else None for n in range(80)]
ITEMS = pl.DataFrame(
    {"item_id": range(1, 81), "text": TEXTS}, schema={"item_id": pl.UInt32, "text": pl.String}
)


@pytest.fixture
def bert(tmp_path):
    folder = tmp_path / "bert"
    folder.mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS]) + "\n")
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=64)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = BertConfig(vocab_size=11, num_hidden_layers=2, max_position_embeddings=64, **sizes)
    for part in (BertModel(config), tokenizer):
        part.save_pretrained(folder)
    return str(folder)


def encode(encoder, folder, progress=None, **settings):
    config = FeaturesConfig(shard_size=16, device="cpu", **settings)
    return encode_texts(ITEMS, folder, encoder, config, "feed", progress)


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(bert, tmp_path, read_tree):
    encoder = load_encoder(EncoderSpec("text", bert, "cpu", batch_size=4))
    encode(encoder, tmp_path / "one")
    seen = []
    two = encode(encoder, tmp_path / "two", lambda *done: seen.append(done), devices=2)
    assert read_tree(tmp_path / "one") == read_tree(tmp_path / "two")
    assert two.present == 71
    assert seen[-1] == (80, 80)


MACHINE = """
import sys
from pathlib import Path
from tests_of import ITEMS, EncoderSpec, encode, load_encoder
if __name__ == "__main__":
    encoder = load_encoder(EncoderSpec("text", sys.argv[1], "cpu", batch_size=4))
    print(encode(encoder, Path(sys.argv[2]), num_nodes=2).present)
"""


@pytest.mark.slow
def test_two_machines_write_the_bytes_of_one(bert, tmp_path, read_tree):
    encode(load_encoder(EncoderSpec("text", bert, "cpu", batch_size=4)), tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "machine.py").write_text(MACHINE)
    (tmp_path / "tests_of.py").symlink_to(Path(__file__).resolve())
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(Path.cwd())}
    machines = [
        subprocess.Popen(
            [sys.executable, tmp_path / "machine.py", bert, tmp_path / "two"],
            env=os.environ | where | {"NODE_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    assert [machine.communicate(timeout=120)[0].strip() for machine in machines] == ["71", "71"]
    assert read_tree(tmp_path / "one") == read_tree(tmp_path / "two")


@pytest.mark.slow
def test_another_encoder_in_a_process_is_refused(tmp_path):
    class Other(HashingTextEncoder):
        def __init__(self):
            super().__init__()
            self.key = "other-0"  # the processes load the one that its spec names

    with pytest.raises(Exception, match=r"has loaded the encoder hashing-\w+, the first process"):
        encode(Other(), tmp_path / "two", devices=2)
    assert not list((tmp_path / "two").glob("*"))


def test_no_process_is_started_for_nothing(tmp_path, read_tree, monkeypatch):
    encode(HashingTextEncoder(), tmp_path)
    before = read_tree(tmp_path)
    monkeypatch.setattr(encoding_processes, "Fabric", None)
    assert encode(HashingTextEncoder(), tmp_path, devices=2).present == 71
    assert read_tree(tmp_path) == before


def test_there_must_be_a_gpu_for_each_process(monkeypatch):
    monkeypatch.setattr(encoding_processes, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    spec = EncoderSpec("text", "hashing", "cuda")
    with pytest.raises(ConfigError, match=r"features\.devices is 3, PyTorch sees 2 GPUs\. Next"):
        encode_in_processes(None, spec, FeaturesConfig(devices=3))


@pytest.mark.parametrize(
    ("num_nodes", "rank", "is_first"),
    [(1, "0", True), (1, "1", True), (2, "0", True), (2, "1", False)],
)
def test_the_first_machine(monkeypatch, num_nodes, rank, is_first):
    monkeypatch.setenv("NODE_RANK", rank)
    assert is_first_machine(FeaturesConfig(num_nodes=num_nodes)) is is_first
