"""The backend `unrolled`."""
