import html
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import text as module
from pipeline.text import (
    MAX_CHARS,
    clean,
    clean_title,
    cut,
    describe_item,
    encodable,
    item_text,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Canoe &amp; Kayak", "Canoe & Kayak"),
        ("Canoe &amp;amp; Kayak", "Canoe & Kayak"),
        ("D&eacute;cor &#x2014; d&#233;cor", "D\u00e9cor \u2014 d\u00e9cor"),
        ("&lt;b&gt;Bold&lt;/b&gt; words", "Bold words"),
        ('a<br clear= "all">b<BR/>c', "a b c"),
        ("x<script>var a = '<b>';</script>y", "x y"),
        ("x<style>p {}", "x"),
        ("x<!-- hidden -->y", "x y"),
        ('Salt <span class="a-size-medium', "Salt"),
        ("two\n\n \t words\u00a0here", "two words here"),
        ("bell\x07 zero\u200bwidth \ufeff", "bell zerowidth"),
        ("half \ud83d emoji, Cond\ufffd", "half emoji, Cond"),
        ("5 < 6 and <3 hearts, 7 > 2", "5 < 6 and <3 hearts, 7 > 2"),
        ("R&D, AT&T", "R&D, AT&T"),
        (["Fine.", "", "</span>", "Fine.", "White."], "Fine. White."),
        ([1, None, {"a": 1}, ["b"], "c"], "1 c"),
        (12.5, "12.5"),
        (None, ""),
        (True, ""),
        ({"a": "b"}, ""),
    ],
)
def test_clean_shows_what_a_reader_of_the_page_sees(value, expected):
    assert clean(value, 100) == expected


def test_clean_survives_a_reference_with_more_digits_than_python_reads():
    assert clean("a &#" + "9" * 5000 + "; b", 4000) == "a b"


def test_clean_joins_categories_with_its_separator():
    assert clean(["Grocery", "Salt &amp; Pepper"], 100, ", ") == "Grocery, Salt & Pepper"


@pytest.mark.parametrize(
    "title",
    [
        '<span class="a-size-medium a-color-secondary"',
        ' Magazines" />',
        "var aPageStart = (new Date()).getTime();",
        "P.when('A').execute(function(A) {});",
        "",
        None,
        ["<b></b>"],
    ],
)
def test_titles_that_are_leftovers_of_the_page_are_empty(title):
    assert clean_title(title) == ""


@pytest.mark.parametrize("title", ['12" Ruler', "Functional (Pack of 2)", "Get Time", "A > B"])
def test_ordinary_titles_stay(title):
    assert clean_title(title) == title


def test_cut_is_between_words_and_within_a_word_without_any():
    assert cut("one two three", 7) == "one two"
    assert cut("one two three", 6) == "one"
    assert cut("abcdef", 3) == "abc"
    assert cut("abc", 3) == "abc"


@given(st.text(), st.integers(1, 30))
def test_clean_text_is_one_trimmed_line_of_at_most_max_chars(text, max_chars):
    cleaned = clean(text, max_chars)
    assert len(cleaned) <= max_chars
    assert cleaned == " ".join(cleaned.split())
    cleaned.encode()


def _clean_plainly(text, max_chars):
    """The rounds of `clean` on a string, none of them skipped."""
    text = text[: 4 * max_chars]
    text = module._HUGE_REFERENCE.sub(" ", text)
    for _ in range(4):
        text = html.unescape(text)
        for markup in (module._SCRIPT, module._TAG, module._UNCLOSED_TAG):
            text = markup.sub(" ", text)
    text = module._CONTROL.sub(" ", module._INVISIBLE.sub("", text))
    return cut(" ".join(text.split()), max_chars)


FRAGMENTS = [
    *["&", "&amp;", "&amp;amp;", "&lt;b&gt;", "&#60;", "&#x", "&#" + "9" * 9, "&nbsp;", "&eacute"],
    *["<b>", "</b>", "<", ">", "<br ", "<a href='", "<script>", "</script>", "<!--", "-->", '"/>'],
    *["\ufffd", "\u200b", "\ufeff", "\ud83d", "\U0001f600", "\x00", "\x85", "\u00a0", "\u2028"],
    *["salt", "Sea ", " ", "\n", "\t", "\u00e9", "12", ";", "=", "\u0661"],
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=9).map("".join), st.integers(1, 40))
def test_clean_skips_only_what_would_change_nothing(text, max_chars):
    assert clean(text, max_chars) == _clean_plainly(text, max_chars)


@given(st.text(), st.integers(1, 30))
def test_clean_of_any_text_skips_only_what_would_change_nothing(text, max_chars):
    assert clean(text, max_chars) == _clean_plainly(text, max_chars)


def test_all_invisible_characters_are_seen():
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    for character in module._INVISIBLE.findall(every) + module._CONTROL.findall(every):
        assert clean(f"a{character}b", 9) in ("ab", "a b")


RECORD = {
    "title": "Sea &amp; Salt",
    "brand": "Maldon",
    "description": ["Fine flakes", "Fine flakes", "From Essex!"],
    "category": ["Grocery", "Salt &amp; Pepper", "</span>"],
    "feature": ["Vegan", "250 g"],
}
JUNK = '<span class="a-size-medium a-color-secondary"'


def test_an_item_is_described_by_title_brand_and_text():
    text = "Sea & Salt. Maldon. Fine flakes From Essex!"
    assert describe_item("B1", RECORD, "clean") == ("Sea & Salt", "Maldon", text)
    official = describe_item("B1", RECORD, "official")
    assert official[:2] == ("Sea & Salt", "Maldon")
    assert official.text == item_text("B1", RECORD, "official")


def test_clean_template_is_title_brand_description():
    assert item_text("B1", RECORD, "clean") == "Sea & Salt. Maldon. Fine flakes From Essex!"


def test_clean_template_falls_back_on_category_and_features_without_a_title():
    text = item_text("B1", RECORD | {"title": JUNK}, "clean")
    assert text == "Maldon. Grocery, Salt & Pepper. Vegan 250 g. Fine flakes From Essex!"


@pytest.mark.parametrize("record", [{}, {"title": JUNK, "brand": 0 > 1, "description": [None]}])
def test_clean_template_is_never_empty(record):
    assert item_text("B1", record, "clean") == "B1"


def test_clean_template_says_nothing_twice():
    assert item_text("B1", {"title": "Salt", "brand": "Salt"}, "clean") == "Salt."


def test_official_template_is_that_of_the_released_code():
    record = {"title": "A &amp; B", "brand": "", "description": ["x", "y's"], "price": "1"}
    text = item_text("B1", record, "official")
    assert text == "Title: A &amp; B ; Brand:  ; Description: ['x', \"y's\"] ; "
    assert item_text("B1", {"description": []}, "official") == "Description: [] ; "
    assert item_text("B1", {"price": "1"}, "official") == "Asin: B1 ; "
    assert item_text("B1", {"title": None}, "official") == "Asin: B1 ; "


def test_official_template_can_be_written_as_utf_8():
    assert item_text("B1", {"title": "\ud83d"}, "official") == "Title: ? ; "
    assert encodable("a\ude00b") == "a?b"


@pytest.mark.parametrize("markup", ["<script", "<!--", "<a b=", "&lt;", '" ', "<a" + " " * 50])
def test_cleaning_a_hostile_field_takes_no_longer_than_its_length(markup):
    assert len(clean(markup * 100_000, MAX_CHARS["description"])) <= MAX_CHARS["description"]
