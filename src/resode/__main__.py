"""`resode`, or `python -m resode`: the command line."""

import os
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; Ctrl-C ends it in one line while it is still being imported, too."""
    try:
        from resode.cli import main as run

        run()
    except KeyboardInterrupt:
        os.write(2, b"resode: interrupted\n")
        os._exit(130)


if __name__ == "__main__":
    main()
