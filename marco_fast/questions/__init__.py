"""Generated test questions of six kinds, with reference answers and written thoughts."""
