"""A run's folder: what is kept there, who may write to it, and which steps are done."""
