"""One call: questions in, results out."""
