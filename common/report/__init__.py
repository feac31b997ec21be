"""The report's parts: the page, its text form, its tables, charts and facts."""
