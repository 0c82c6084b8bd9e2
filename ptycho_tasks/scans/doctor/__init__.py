"""What is wrong with a scan, from its data alone, and which settings mend it."""
