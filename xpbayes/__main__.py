"""``python -m xpbayes``."""

from xpbayes.cli import main

if __name__ == "__main__":
    main()
