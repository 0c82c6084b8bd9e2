"""What a scan gives to train on: groups of frames, blocks of them, labels, simulated objects."""
