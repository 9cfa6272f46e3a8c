"""A saved search tree: reading its file, and the HTML page that shows it."""
