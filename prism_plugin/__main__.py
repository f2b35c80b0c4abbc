"""`python -m prism_plugin` is `prism-plugin`."""

import sys

from prism_plugin.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
