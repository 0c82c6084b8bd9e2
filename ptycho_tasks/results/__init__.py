"""What runs write and read again: bundles, reconstructions, pictures."""
