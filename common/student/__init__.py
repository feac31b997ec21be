"""The student: its prompt and weights, its LoRA adapter, its answers."""
