"""What a task file says, and what it means."""
