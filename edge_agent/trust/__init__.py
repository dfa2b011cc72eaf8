"""Whom a box believes and who it is: key, installation, enrolment, access, time."""
