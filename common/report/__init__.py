"""The report: HTML page, Markdown text, tables, charts, facts and server."""
