"""The life of a skill: observe, decide, train, gate, promote; and undoing each of it."""
