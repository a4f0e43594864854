"""Entry point of the command `mmm4rec`, in a checkout and in an installed wheel."""

import sys
from pathlib import Path


def main() -> None:
    """Run the command line.

    A wheel carries `cli.py`, `pipeline` and `experiments` inside `mmm4rec/_bundled`, so that it
    adds one name to site-packages; they are put in front of the import path here.
    """
    bundled = Path(__file__).parent / "_bundled"
    if bundled.is_dir():
        sys.path.insert(0, str(bundled))
    from cli import run

    run()


if __name__ == "__main__":
    main()
