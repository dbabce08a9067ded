"""Which settings suit a person's own skills: a search within a time budget.

Trains experts alone, one for each skill, and keeps none of them; knows no pool. Optuna, an extra,
is imported in `search` alone.
"""
