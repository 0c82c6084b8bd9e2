"""Scans and fixtures: reading, checking, cutting."""
