"""Settings in, wired objects out: the only room that imports storage."""
