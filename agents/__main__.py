"""Entry point of ``python -m agents`` and of ``agent.pyz``."""

import sys

from agents.cli import main

sys.exit(main())
