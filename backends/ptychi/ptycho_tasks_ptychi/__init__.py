"""Iterative engines for ptycho-tasks, through the library pty-chi."""
