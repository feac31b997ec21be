"""A real student and real people's answers: what `make run-real` distils."""
