"""litellm in a process of its own: it leaves threads and an event loop behind, and takes seconds.

Reads one call per line of its input, as JSON, and writes one line with what came of it.
"""

import json
import os
import sys
from itertools import islice
from typing import Any

from lab.loopback import held_to_this_host


def main() -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches a list of prices
    out, sys.stdout = sys.stdout, sys.stderr  # it advertises itself
    with held_to_this_host() as held:
        import litellm

        for line in sys.stdin:
            call = json.loads(line)
            try:
                answer = getattr(litellm, call["function"])(**call["arguments"])
                result = shown(answer, call["take"])
            except Exception as exc:
                result = f"{type(exc).__name__}: {exc}"
            else:
                if call["take"] is not None:
                    answer.completion_stream.close()  # it has no method of its own for that
            print(json.dumps({"result": result, "asked": held.asked}), file=out, flush=True)


def shown(result: Any, take: int | None) -> str:
    """An answer, or the pieces of a streamed one, as JSON."""
    if hasattr(result, "model_dump_json"):
        return str(result.model_dump_json())
    return "\n".join(shown(piece, None) for piece in islice(result, take))


if __name__ == "__main__":
    main()
