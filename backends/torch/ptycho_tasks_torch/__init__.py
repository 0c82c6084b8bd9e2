"""PyTorch backends for ptycho-tasks."""
