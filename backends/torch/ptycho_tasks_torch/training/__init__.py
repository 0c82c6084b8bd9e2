"""Training a network: what every backend of this package shares."""
