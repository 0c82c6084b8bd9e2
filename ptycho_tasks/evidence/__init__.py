"""What proves the rows of a plan: items, runs, publication."""
