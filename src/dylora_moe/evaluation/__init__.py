"""What a pool did, shown: its history read back, its matrices and metrics, tables, figures, report.

Reads the registry, the scores artifacts and the runs' logs; changes no pool and, `continual` apart,
loads no model. `continual` judges learners by streams, and runs them.
"""
