"""Campaigns: many random cases against the whole product, each of which can be run again alone."""
