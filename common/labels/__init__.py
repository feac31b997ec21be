"""The label job's own parts: from examples to label rows."""
