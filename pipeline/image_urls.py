"""The addresses under which Amazon serves the same picture in other sizes.

    https://images-na.ssl-images-amazon.com/images/I/51abcDEF%2BL._SX38_SY50_CR,0,0,38,50_.jpg
                                                     picture      size suffix              format

Without the suffix it is the original; another suffix is another size of it. A size that is gone
does not mean that the others are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_VARIANTS = 6  # per item: a picture that has gone costs no more requests than these
MODERATE = "._SL500_"  # at most 500 pixels a side, more than any encoder looks at
# Hosts that have served the same paths, and the domains by which others of them are known.
HOSTS = ("m.media-amazon.com", "images-na.ssl-images-amazon.com", "ecx.images-amazon.com")
DOMAINS = ("media-amazon.com", "ssl-images-amazon.com", "images-amazon.com")

_PATH = re.compile(
    r"(?P<stem>/images/I/[A-Za-z0-9%+-]{1,64})"
    r"(\._[A-Za-z0-9,%_+-]{1,128}_)?"
    r"(?P<extension>\.(jpg|jpeg|png|gif|webp))",
    re.ASCII,
)


@dataclass(frozen=True)
class _Picture:
    site: str  # scheme and host
    host: str
    stem: str
    extension: str


def size_variants(urls: Sequence[str]) -> list[str]:
    """Return further addresses of an item's pictures, the likeliest first.

    First, on the hosts that the URLs name, the original and a moderate size of each picture; then,
    where such a host is Amazon's, the original on the other hosts that have served it. URLs that
    do not have Amazon's form have no variants.

    Args:
        urls: the URLs that an item lists.

    Returns:
        At most `MAX_VARIANTS`, each once, none of `urls`.

    >>> size_variants(["https://mirror.example/images/I/51abc._SS40_.jpg"])
    ['https://mirror.example/images/I/51abc.jpg', 'https://mirror.example/images/I/51abc._SL500_.jpg']
    """
    pictures = [picture for url in urls if (picture := _parse(url)) is not None]
    found = dict.fromkeys([*_other_sizes(pictures), *_other_hosts(pictures)])
    return [url for url in found if url not in urls][:MAX_VARIANTS]


def _other_sizes(pictures: list[_Picture]) -> Iterator[str]:
    for picture in pictures:
        for suffix in ("", MODERATE):
            yield f"{picture.site}{picture.stem}{suffix}{picture.extension}"


def _other_hosts(pictures: list[_Picture]) -> Iterator[str]:
    for picture in pictures:
        if any(picture.host == name or picture.host.endswith(f".{name}") for name in DOMAINS):
            for host in HOSTS:
                if host != picture.host:
                    yield f"https://{host}{picture.stem}{picture.extension}"


def _parse(url: str) -> _Picture | None:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return None
    found = _PATH.fullmatch(parts.path)
    has_more = parts.query or parts.fragment or "@" in parts.netloc
    if not found or has_more or parts.scheme not in ("http", "https"):
        return None
    return _Picture(f"{parts.scheme}://{parts.netloc}", host, found["stem"], found["extension"])
