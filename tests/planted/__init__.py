"""Bugs that the suite must catch, and the script that plants them."""
