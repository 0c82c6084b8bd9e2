"""The graph of tasks: their table, their staleness, their records, and how they run."""
