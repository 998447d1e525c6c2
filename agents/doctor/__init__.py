"""Why this device does not serve, or might stop to: small checks, each of one thing.

Every check is a pure function of what was read; readings are thin and have time limits. Nothing
here connects to an rpc port, changes anything, or needs a running agent.
"""
