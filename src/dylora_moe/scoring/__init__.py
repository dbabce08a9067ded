"""How good an answer, a run, a detector and a difference are: pure functions, no model library."""
