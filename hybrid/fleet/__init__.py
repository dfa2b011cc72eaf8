"""What boxes and their gateway say to one another: enrolment, desired state, reports, ingest."""
