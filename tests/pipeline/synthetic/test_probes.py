"""Look and theme are read from pictures and words, and from nothing else.

The features are those of training-free encoders, written here anew.
"""

import html
import io
import re
import zlib
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from pipeline.synthetic import shop
from pipeline.synthetic.behaviour import NUM_LOOKS, NUM_THEMES


def pixels(body):
    with Image.open(io.BytesIO(body)) as picture:
        small = picture.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
    return (np.asarray(small, dtype=np.float64).ravel() / 255 - 0.5) / 0.5


def words(line):
    text = " ".join([line["title"], line["brand"], *line["description"]])
    clean = re.sub(r"<[^>]*(>|$)", " ", html.unescape(text)).lower()
    unigrams = re.findall(r"[a-z0-9']+", clean)
    vector = np.zeros(256)
    for gram in [*unigrams, *map(" ".join, pairwise(unigrams))]:
        code = zlib.crc32(gram.encode())
        vector[code % 256] += 1 if code >> 16 & 1 else -1
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


def ridge_accuracy(train, test, strength):
    """Fit one-hot labels by ridge regression on `train`, return the accuracy on `test`."""
    (x, labels), (x_test, labels_test) = train, test
    targets = np.eye(labels.max() + 1)[labels]
    centred = x - x.mean(0)
    gram = centred.T @ centred + strength * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, centred.T @ (targets - targets.mean(0)))
    scores = (x_test - x.mean(0)) @ weights + targets.mean(0)
    return (scores.argmax(1) == labels_test).mean()


@pytest.fixture(scope="module")
def probe(miniature, read_metadata):
    """Accuracy downstream of a linear probe that was fitted on the pre-training domains."""

    def gather(names, feature, labels):
        values, classes = [], []
        for name in names:
            domain = miniature.domains[name]
            last = {line["asin"]: line for line in read_metadata(miniature, name)}
            for index, asin in enumerate(domain.catalogue.core):
                value = feature(miniature, domain, last[asin], index)
                if value is not None:
                    values.append(value)
                    classes.append(getattr(domain.latents, labels)[index])
        return np.array(values), np.array(classes)

    def accuracy(feature, labels, strength):
        train = gather(miniature.pretraining, feature, labels)
        test = gather(miniature.downstream, feature, labels)
        return ridge_accuracy(train, test, strength)

    return accuracy


def picture_feature(world, domain, line, index):
    if domain.catalogue.fates[index] in shop.WITHOUT_IMAGE:
        return None
    urls = [*line["imageURLHighRes"], *line["imageURL"]]
    names = [url.rpartition("/")[2] for url in urls]
    files = [world.folder / "www" / "images" / "I" / name for name in names]
    return pixels(next(file for file in files if file.is_file()).read_bytes())


def text_feature(world, domain, line, index):
    return words(line)


def other_feature(world, domain, line, index):
    """Everything about an item except its words and picture."""
    names = [url.rpartition("/")[2] for url in line["imageURLHighRes"]]
    letters = [float(ord(letter)) / 64 for letter in line["asin"]]
    order = [other["asin"] for other in domain.catalogue.lines]
    hashed = np.eye(32)[[zlib.crc32(text.encode()) % 32 for text in (line["brand"], *names)]].sum(0)
    bought = sum(int((sequence == index).sum()) for sequence in domain.sequences)
    price, position = float(line["price"].lstrip("$")), order.index(line["asin"])
    return np.concatenate([letters, hashed, [price / 90, position / 200, bought / 40]])


def test_a_linear_probe_reads_the_look_from_pictures_across_domains(probe):
    assert probe(picture_feature, "looks", 1000.0) >= 0.95


def test_a_linear_probe_reads_the_theme_from_words_across_domains(probe):
    assert probe(text_feature, "themes", 1.0) >= 0.95


@pytest.mark.parametrize(
    ("feature", "labels", "count", "strength"),
    [
        (other_feature, "looks", NUM_LOOKS, 1.0),
        (other_feature, "themes", NUM_THEMES, 1.0),
        (text_feature, "looks", NUM_LOOKS, 1.0),
        (picture_feature, "themes", NUM_THEMES, 1000.0),
    ],
)
def test_nothing_else_gives_the_structure_away(probe, feature, labels, count, strength):
    assert probe(feature, labels, strength) < 1 / count + 0.1
