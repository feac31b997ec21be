"""The ways in which a session's requests travel to the teacher."""
