"""Formats of files, one a module."""
