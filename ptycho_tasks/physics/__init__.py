"""The forward model of ptychography, scores, and simulated scans; numpy only."""
