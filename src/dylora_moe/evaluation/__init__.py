"""What a pool did, shown: its history read back, its matrices and metrics, tables, figures, report.

Reads the registry, the scores artifacts and the runs' logs; loads no model and changes no pool.
`continual` makes the streams that a learner is judged by.
"""
