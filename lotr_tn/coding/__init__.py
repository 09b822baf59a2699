"""Bits in place of floats: quantised columns, models of their entries, and one stream of them all.

A column of whole numbers is coded by a table of integer frequencies that one byte names, so that
there are no tables to send and the same bytes mean the same numbers on every machine.
"""
