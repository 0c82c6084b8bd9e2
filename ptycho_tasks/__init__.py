"""A Make-style build tool for ptychography with neural networks."""
