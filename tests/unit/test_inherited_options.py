"""What the environment says of options reaches no program of the engine."""

import os
import sys

from agents import engine


async def test_questions_to_the_engine_are_asked_without_inherited_options() -> None:
    """A value that it cannot read would end it, and its ``--help`` would tell of no option."""
    inherited = {
        **os.environ,
        "LLAMA_ARG_THREADS": "many",
        "LLAMA_ARG_RPC": "h:1",
        "MTMD_BACKEND_DEVICE": "RPC0",
    }
    shown = "import os; print(*sorted(n for n in os.environ if n.startswith(('LLAMA_', 'MTMD'))))"
    status, output = await engine.run([sys.executable, "-c", shown], inherited)
    assert (status, output.split()) == (0, [])
