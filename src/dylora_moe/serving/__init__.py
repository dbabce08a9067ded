"""A pool as a service: an engine that answers many requests at once, and HTTP in front of it.

`engine` batches requests while they run and knows no HTTP; `http` speaks OpenAI's protocol and
knows no model. Learns nothing by itself: what learns is another process, whose changes are picked
up.
"""
