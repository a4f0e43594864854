"""Entry point of the command `mmm4rec`, in a checkout and in an installed wheel."""

import os
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
    # libgomp spins long at barriers: on a busy machine a step is then 100 times slower.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    from cli import run

    run()


if __name__ == "__main__":
    main()
