"""Files, locks, clocks, terminals, processes and source code: what the machine gives."""
