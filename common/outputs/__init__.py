"""The predict job's inputs, and the parts with the answers to them."""
