"""Writes that one node takes and another decides: asked, shown, kept, and recognised when they come again."""
