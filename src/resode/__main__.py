"""`python -m resode` is the command line."""

from resode.cli import main

if __name__ == "__main__":
    main()
