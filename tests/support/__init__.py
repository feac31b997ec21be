"""What tests use: stand-ins for servers, and jobs as commands."""
