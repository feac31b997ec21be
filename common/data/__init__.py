"""The examples to label, and the rows to evaluate on."""
