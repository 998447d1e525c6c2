"""Bad networks on loopback, for tests and benches."""
