"""The bundled nano models: their questions, their training, their evaluation."""
