"""Size variants of Amazon's image URLs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.image_urls import HOSTS, MAX_VARIANTS, size_variants

NA, M, ECX = (
    "https://images-na.ssl-images-amazon.com/images/I",
    "https://m.media-amazon.com/images/I",
    "https://ecx.images-amazon.com/images/I",
)


@pytest.mark.parametrize(
    "suffix",
    ["._SS40_", "._SX300_", "._AC_UL115_", "._SR38,50_", "._SX38_SY50_CR,0,0,38,50_", "._US40_"],
)
def test_any_suffix_leads_to_the_original_first(suffix):
    assert size_variants([f"{NA}/51ab-DEF%2BL{suffix}.jpg"]) == [
        f"{NA}/51ab-DEF%2BL.jpg",
        f"{NA}/51ab-DEF%2BL._SL500_.jpg",
        f"{M}/51ab-DEF%2BL.jpg",
        f"{ECX}/51ab-DEF%2BL.jpg",
    ]


def test_what_is_listed_is_no_variant():
    assert size_variants([f"{NA}/51a.jpg", f"{NA}/51a._SL500_.jpg", f"{M}/51a.jpg"]) == [
        f"{M}/51a._SL500_.jpg",
        f"{ECX}/51a.jpg",
    ]


def test_the_pictures_take_turns_before_the_hosts_do():
    variants = size_variants([f"{NA}/{n}._SS40_.png" for n in range(2)])
    assert variants == [
        f"{NA}/0.png", f"{NA}/0._SL500_.png", f"{NA}/1.png", f"{NA}/1._SL500_.png",
        f"{M}/0.png", f"{ECX}/0.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("site", "hosts"),
    [
        ("http://ecx.images-amazon.com", [M, NA]),
        ("https://images-eu.ssl-images-amazon.com", [M, NA, ECX]),
        ("https://M.media-amazon.com", [NA, ECX]),
        ("http://127.0.0.1:8000", []),
        ("https://evil-images-amazon.com", []),
        ("https://images-amazon.com.evil.example", []),
    ],
)
def test_other_hosts_are_tried_where_the_host_is_amazons(site, hosts):
    assert size_variants([f"{site}/images/I/51a.jpg"]) == [
        f"{site}/images/I/51a._SL500_.jpg",
        *(f"{host}/51a.jpg" for host in hosts),
    ]


@pytest.mark.parametrize(
    "url",
    [
        "https://m.media-amazon.com/images/G/01/logo.jpg",
        "https://m.media-amazon.com/images/I/51a.bmp",
        "https://m.media-amazon.com/images/I/51a",
        "https://m.media-amazon.com/images/I/51a._SS40.jpg",
        "https://m.media-amazon.com/images/I/51a.jpg?size=40",
        "https://m.media-amazon.com/images/I/51a.jpg#top",
        "https://m.media-amazon.com/images/I/../51a.jpg",
        "https://m.media-amazon.com/other/images/I/51a.jpg",
        "https://m.media-amazon.com/images/I/51 a.jpg",
        "https://user:secret@m.media-amazon.com/images/I/51a.jpg",
        "ftp://m.media-amazon.com/images/I/51a.jpg",
        "file:///images/I/51a.jpg",
        "https://[::1/images/I/51a.jpg",
        "https://m.media-amazon.com/images/I/" + "a" * 100 + ".jpg",
        "51a.jpg",
        "",
    ],
)
def test_other_urls_have_none(url):
    assert size_variants([url]) == []


@given(
    st.lists(
        st.builds(
            "https://{}/images/I/{}{}.jpg".format,
            st.sampled_from([*HOSTS, "mirror.example"]),
            st.sampled_from(["51a", "81b%2B", "x-y"]),
            st.sampled_from(["", "._SL500_", "._SS40_"]),
        )
        | st.text(),
        max_size=8,
    )
)
def test_variants_are_few_new_and_of_the_same_pictures(urls):
    variants = size_variants(urls)
    assert len(variants) <= MAX_VARIANTS
    assert len({*variants, *urls}) == len(variants) + len(set(urls))
    names = {url.rpartition("/")[2].partition(".")[0] for url in urls}
    assert {url.rpartition("/")[2].partition(".")[0] for url in variants} <= names
