"""HTTP in front of the engine: OpenAI's protocol, the pool's own, metrics and the page."""
