"""The examples and the test rows."""
