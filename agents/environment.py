"""Which environment variables matter to llama.cpp, and how they may be shown."""

import sys
from collections.abc import Mapping

# LLAMA_ARG_* overrides flags silently; the library paths decide which build really runs.
_PREFIXES = ("LLAMA_", "GGML_", "HF_", "DYLD_", "CUDA_", "HIP_", "VK_", "MTL_", "AGX_", "OMP_")
_NAMES = ("LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "TMPDIR")
_DROPPED = ("LLAMA_ARG_", "LLAMA_API_KEY", "LLAMA_SERVER_SLOTS_DEBUG", "MTMD_BACKEND_DEVICE")
_SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD")

_ON_MACS = {"AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1"}
"""Metal ends long work less soon; engines since April 2026 set it themselves (PR 22216)."""

MASK = "***"


def relevant(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that can change what llama.cpp does, sorted, with secrets masked."""
    return {
        name: MASK if _is_secret(name) else value
        for name, value in sorted(environment.items())
        if name in _NAMES or name.startswith(_PREFIXES)
    }


def _is_secret(name: str) -> bool:
    return any(word in name.upper() for word in _SECRET_WORDS)


def for_engine(
    inherited: Mapping[str, str], ours: Mapping[str, str], platform: str = sys.platform
) -> dict[str, str]:
    """Environment of an engine process: what we inherited, without what would harm, and ours.

    A copy of everything, since Termux programs need more of it than one would guess. The
    ``LLAMA_ARG_*`` family is dropped: it would override the planned flags without a word; and so
    are one that adds a key which llama-server takes besides ours, one that puts everybody's
    prompts into ``/slots``, and one that names a device for the projector.
    ``platform`` is as ``sys.platform`` has it.
    """
    kept = {n: value for n, value in inherited.items() if not n.startswith(_DROPPED)}
    return {**(_ON_MACS if platform == "darwin" else {}), **kept, **ours}
