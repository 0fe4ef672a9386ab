"""`python -m gridwork_server`."""

import sys

from gridwork_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
