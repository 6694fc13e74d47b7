"""Editing datasets that others report on: read, edited through the batch engine, scored, told in a table."""
