"""The backend `pinn`."""
