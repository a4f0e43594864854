import pytest

from mmm4rec.errors import ConfigError
from pipeline.domains import CATALOGUE, DOWNSTREAM, PRETRAINING, Domain, find_domain, name_domain


def test_published_counts_of_the_pretraining_domains_add_up_to_the_merged_set():
    counts = [domain.published for domain in PRETRAINING]
    assert sum(c.users for c in counts) == 1_361_408
    assert sum(c.items for c in counts) == 446_975
    assert sum(c.interactions for c in counts) == 14_029_229


def test_published_counts_of_the_downstream_domains():
    found = {d.name: (d.published.users, d.published.items) for d in DOWNSTREAM}
    assert found == {
        "Scientific": (8_442, 4_385),
        "Pantry": (13_101, 4_898),
        "Instruments": (24_962, 9_964),
        "Arts": (45_486, 21_019),
        "Office": (87_346, 25_986),
    }


def test_catalogue_has_the_29_categories_of_the_release_once():
    assert len({domain.category for domain in CATALOGUE}) == len(CATALOGUE) == 29
    names = [alias for d in CATALOGUE for alias in {d.name, d.category}]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["Office", "Office_Products"])
def test_short_and_full_names_are_one_domain(name):
    domain = find_domain(name)
    assert (domain.name, domain.category) == ("Office", "Office_Products")
    assert domain.ratings_file == "Office_Products.csv"
    assert domain.metadata_file == "meta_Office_Products.json.gz"
    assert name_domain(name) == domain


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("Ofice", "Office"), ("office_products", "Office_Products"), ("Magazines", "Magazine")],
)
def test_an_unknown_domain_is_an_error_with_the_nearest(name, nearest):
    with pytest.raises(ConfigError, match=f"unknown domain '{name}', did you mean '{nearest}"):
        find_domain(name)


def test_an_unknown_domain_with_nothing_near_lists_all():
    with pytest.raises(ConfigError, match=r"known: Food, CDs, .*Video_Games"):
        find_domain("xyz")


def test_a_domain_of_the_users_own_has_files_with_its_name():
    domain = name_domain("My-shop")
    assert domain == Domain("My-shop", "My-shop", None)
    assert domain.metadata_file == "meta_My-shop.json.gz"


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "a" * 65, "a\n"])
def test_a_name_that_cannot_be_a_folder_is_an_error(name):
    with pytest.raises(ConfigError, match="a name is 1 to 64 letters"):
        name_domain(name)
