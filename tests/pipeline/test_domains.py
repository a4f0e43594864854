import re

import pytest

from mmm4rec.errors import ConfigError
from pipeline.domains import (
    CATALOGUES,
    DOWNSTREAM,
    EDITIONS,
    PRETRAINING,
    Domain,
    find_domain,
    name_domain,
    name_file,
)


def test_published_counts_of_the_pretraining_domains_add_up_to_the_merged_set():
    counts = [domain.published for domain in PRETRAINING]
    assert sum(c.users for c in counts) == 1_361_408
    assert sum(c.items for c in counts) == 446_975
    assert sum(c.interactions for c in counts) == 14_029_229
    assert sum(c.images for c in counts) == 94_151


def test_published_counts_of_the_downstream_domains():
    found = {d.name: (d.published.users, d.published.items) for d in DOWNSTREAM}
    assert found == {
        "Scientific": (8_442, 4_385),
        "Pantry": (13_101, 4_898),
        "Instruments": (24_962, 9_964),
        "Arts": (45_486, 21_019),
        "Office": (87_346, 25_986),
    }


def test_published_image_coverage_fits_the_published_percentages():
    percent = {"Food": 75.60, "CDs": 32.85, "Kindle": 0, "Movies": 14.65, "Home": 18.50}
    percent |= {"Scientific": 36.15, "Pantry": 93.65, "Instruments": 63.12, "Arts": 44.90}
    percent["Office"] = 63.99
    for domain in (*PRETRAINING, *DOWNSTREAM):
        covered = 100 * domain.published.images / domain.published.items
        assert covered == pytest.approx(percent[domain.name], abs=0.006)


def test_lines_of_the_ratings_files():
    ratings = {d.category: d.ratings for d in CATALOGUES["2018"]}
    assert ratings["Grocery_and_Gourmet_Food"] == 5_074_160
    assert ratings["CDs_and_Vinyl"] == 4_543_369
    assert ratings["Kindle_Store"] == 5_722_988
    assert ratings["Movies_and_TV"] == 8_765_568
    assert ratings["Home_and_Kitchen"] == 21_928_568
    assert ratings["Industrial_and_Scientific"] == 1_758_333
    assert ratings["Prime_Pantry"] == 471_614
    assert ratings["Musical_Instruments"] == 1_512_530
    assert ratings["Arts_Crafts_and_Sewing"] == 2_875_917
    assert ratings["Office_Products"] == 5_581_313
    assert ratings["Magazine_Subscriptions"] == 89_689
    assert sum(ratings.values()) == 230_139_802
    hashes = [d.ratings_sha256 for d in CATALOGUES["2018"]]
    assert len({h for h in hashes if re.fullmatch("[0-9a-f]{64}", h)}) == 29


@pytest.mark.parametrize(("release", "count"), [("2018", 29), ("2023", 34)])
def test_catalogue_has_every_category_of_the_release_once(release, count):
    catalogue = CATALOGUES[release]
    assert len({domain.category for domain in catalogue}) == len(catalogue) == count
    names = [alias for d in catalogue for alias in d.aliases]
    assert len(set(names)) == len(names)
    assert {d.release for d in catalogue} == {release}


def test_folders_of_the_releases_differ():
    names = [d.name for catalogue in CATALOGUES.values() for d in catalogue]
    assert len({name.lower() for name in names}) == len(names)
    assert name_domain("Mine", "2023").name != name_domain("Mine", "2018").name


@pytest.mark.parametrize("name", ["Office", "Office_Products"])
def test_short_and_full_names_are_one_domain(name):
    domain = find_domain(name)
    assert (domain.name, domain.category) == ("Office", "Office_Products")
    assert name_domain(name) == name_domain(name, "2018") == domain


@pytest.mark.parametrize("name", ["Office", "Office_Products", "Office-2023"])
def test_names_of_release_2023(name):
    domain = find_domain(name, "2023")
    assert domain == Domain("Office-2023", "Office_Products", release="2023")
    assert domain.aliases == ("Office_Products", "Office-2023", "Office")
    assert name_domain(name, "2023") == domain
    assert find_domain("Books", "2023").aliases == ("Books", "Books-2023")


def test_the_name_of_a_prepared_folder_tells_its_release():
    assert name_domain("Office-2023") == find_domain("Office", "2023")
    assert name_domain("Mine-2023") == Domain("Mine-2023", "Mine", release="2023")


@pytest.mark.parametrize("look_up", [find_domain, name_domain])
def test_a_name_of_release_2023_is_not_one_of_2018(look_up):
    with pytest.raises(ConfigError, match=r"'Mine-2023' is of release 2023, .*2018. Next: --rel"):
        look_up("Mine-2023", "2018")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("Ofice", "Office"), ("office_products", "Office_Products"), ("Magazines", "Magazine")],
)
def test_an_unknown_domain_is_an_error_with_the_nearest(name, nearest):
    message = f"unknown domain '{name}' of release 2018, did you mean '{nearest}"
    with pytest.raises(ConfigError, match=message):
        find_domain(name)


def test_an_unknown_domain_with_nothing_near_lists_all():
    with pytest.raises(ConfigError, match=r"known: Food, CDs, .*Video_Games.*xyz.csv and meta_xyz"):
        find_domain("xyz")
    with pytest.raises(ConfigError, match=r"known: All_Beauty, .*Office, .*Unknown.*xyz.jsonl.gz"):
        find_domain("xyz", "2023")


def test_a_category_of_the_other_release_is_unknown():
    with pytest.raises(ConfigError, match="unknown domain 'Prime_Pantry' of release 2023"):
        find_domain("Prime_Pantry", "2023")


def test_a_domain_of_the_users_own_has_files_with_its_name():
    assert name_domain("My-shop") == Domain("My-shop", "My-shop", None)
    assert name_file(EDITIONS["2018"][0].metadata, "My-shop") == "meta_My-shop.json.gz"
    assert name_domain("My-shop", "2023") == Domain("My-shop-2023", "My-shop", release="2023")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "a" * 65, "a\n"])
def test_a_name_that_cannot_be_a_folder_is_an_error(name):
    with pytest.raises(ConfigError, match="a name is 1 to 64 letters"):
        name_domain(name)
