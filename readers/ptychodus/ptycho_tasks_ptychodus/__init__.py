"""Facilities' raw formats for ptycho-tasks, through Ptychodus' own file readers."""
