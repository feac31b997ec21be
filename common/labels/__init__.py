"""From examples to label rows."""
