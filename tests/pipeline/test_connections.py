"""Which addresses may be asked, and by what kind of session."""

import pytest

from pipeline.connections import FetchError, check_url, open_session


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("ftp://example.com/a.jpg", "bad_url"),
        ("file:///etc/passwd", "bad_url"),
        ("data:image/png;base64,AAAA", "bad_url"),
        ("https://user:secret@example.com/a.jpg", "bad_url"),
        ("https://example.com:port/a.jpg", "bad_url"),
        ("https://[::1/a.jpg", "bad_url"),
        ("https:///a.jpg", "bad_url"),
        ("not a url", "bad_url"),
        ("https://example.com/a b.jpg", "bad_url"),
        ("https://example.com/a\nHost: other", "bad_url"),
        ("https://example.com/" + "a" * 3000, "bad_url"),
        ("http://localhost/a.jpg", "private_address"),
        ("http://127.0.0.1/a.jpg", "private_address"),
        ("http://127.1/a.jpg", "private_address"),
        ("http://2130706433/a.jpg", "private_address"),
        ("http://10.1.2.3/a.jpg", "private_address"),
        ("http://169.254.169.254/latest", "private_address"),
        ("http://0.0.0.0/a.jpg", "private_address"),
        ("http://224.0.0.1/a.jpg", "private_address"),
        ("http://[::1]/a.jpg", "private_address"),
        ("http://[fe80::1]/a.jpg", "private_address"),
        ("http://[::ffff:192.168.0.1]/a.jpg", "private_address"),
        ("http://[2002:7f00:1::]/a.jpg", "private_address"),
    ],
)
def test_urls_that_are_not_asked(url, error):
    with pytest.raises(FetchError, match=error):
        check_url(url, allow_private_hosts=False)


def test_urls_that_may_be_asked():
    assert check_url("https://example.com/a.jpg", False) == "example.com:https"
    assert check_url("http://8.8.8.8:8080/a.jpg", False) == "8.8.8.8:8080"
    assert check_url("http://127.0.0.1/a.jpg", True) == "127.0.0.1:http"


def test_the_session_asks_for_pictures_only():
    with open_session(1, allow_private_hosts=False) as session:
        assert set(session.headers["Accept"].split(",")) == {
            "image/jpeg", "image/png", "image/webp", "image/gif",
        }  # fmt: skip
