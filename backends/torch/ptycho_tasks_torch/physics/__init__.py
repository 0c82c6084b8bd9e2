"""The forward model in torch, physics steps on canvases, and the probe."""
