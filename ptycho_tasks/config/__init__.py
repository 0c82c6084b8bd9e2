"""ptycho.yaml: from its text to all that a stage needs, each value with its origin."""
