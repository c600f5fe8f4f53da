"""Agent protocol: framing, the feature header, typed calls. Knows nothing of what the calls do."""
