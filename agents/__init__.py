"""The agent: one small process per device that owns its ``ggml-rpc-server`` and tells the truth.

Pure Python by rule: phones have no compiler and no wheel of pydantic, so nothing here may import
``supervisor`` or a package with compiled parts (psutil is used only where it is installed).
"""

__version__ = "0.1.0"
