"""The evaluate job's own parts: from systems to predictions to scores."""
