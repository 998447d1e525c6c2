"""The command line: a client of the REST API, and the programs up, join and demo."""
