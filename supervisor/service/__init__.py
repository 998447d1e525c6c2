"""Use cases, and the one reconciler that writes state."""
