"""Trainable forms, one a module."""
