"""Bytes: files read and written."""
