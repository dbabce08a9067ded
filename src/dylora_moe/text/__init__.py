"""From files to token ids: formats, reading, templates and masks, splits, batches, streams."""
