"""The decisions of a node: no socket, file, clock, randomness or logging in here.

Time, ids and completions come in as arguments; what is to be done goes out as data.
"""
