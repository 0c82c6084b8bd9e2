"""A prior for objects, learned once from simulated scans of many kinds."""
