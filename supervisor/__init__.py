"""The control plane: plans, starts, watches and explains llama.cpp RPC deployments."""

__version__ = "0.1.0"
