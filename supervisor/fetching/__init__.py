"""Fetches the files of a model from the hub; ``python -m supervisor.fetching`` is the process."""
