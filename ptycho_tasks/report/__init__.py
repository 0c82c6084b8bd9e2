"""Results shown together: side by side, and what a project has of them."""
