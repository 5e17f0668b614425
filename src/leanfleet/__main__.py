"""`python -m leanfleet`."""

from leanfleet.cli import main

if __name__ == "__main__":
    main()
