"""What answers are worth: text in, numbers out."""
