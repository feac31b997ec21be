"""The train job's own parts: from labels to an adapter."""
