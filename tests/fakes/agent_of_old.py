"""An agent from before devices gave each other weights: ``python -m fakes.agent_of_old``."""

import sys

from agents import agent
from agents.cli import main

vars(agent)["peer_routes"] = lambda *_: []

sys.exit(main())
