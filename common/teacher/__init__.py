"""The teacher: its client, what it replied, and what that costs."""
