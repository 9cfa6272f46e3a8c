"""A saved search as a page to look at."""
