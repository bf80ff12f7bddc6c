"""The command line, as ``python -m fxlrp``."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="fxlrp")
