"""How good an answer, a run and a difference are: pure functions on text and numbers."""
