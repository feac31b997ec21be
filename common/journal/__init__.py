"""What was paid for, on storage: written once, by one job at a time, and never asked again."""
